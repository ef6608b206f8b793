"""``epbench launch-files``: what a batch system, a cluster or a CI needs to run a scenario and gate it, ready to edit.

Values of a person (names, paths, commands) reach scripts as variables of the environment only, quoted for the format
that carries them (:mod:`epbench.launch_files.quoting`); the scripts themselves hold none.
"""
