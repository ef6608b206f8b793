// Light or dark: the system's, until the button or the address says otherwise. Paper is always light.
const theme = (() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

  function changed() {
    byId("theme").textContent = isDark() ? "Light" : "Dark";
    for (const listener of listeners) listener();
  }

  function set(name) {
    if (name) root.dataset.theme = name;
    else delete root.dataset.theme;
    changed();
  }

  // A figure's layout with the colours of the page, which plotly does not take from the style.
  function themed(layout) {
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue(name).trim();
    const copy = structuredClone(layout);
    copy.font = { family: "system-ui, sans-serif", size: 12, color: color("--ink") };
    copy.hoverlabel = { ...copy.hoverlabel, bgcolor: color("--paper"), font: { color: color("--ink") } };
    for (const key of Object.keys(copy).filter((name) => /^[xy]axis/.test(name))) {
      Object.assign(copy[key], { gridcolor: color("--line"), linecolor: color("--line"), tickcolor: color("--line") });
    }
    return copy;
  }

  function start() {
    state.on("theme", (name) => set(["dark", "light"].includes(name) ? name : null));
    byId("theme").addEventListener("click", () => {
      set(isDark() ? "light" : "dark");
      state.write("theme", root.dataset.theme);
    });
    system.addEventListener("change", changed);
    addEventListener("beforeprint", () => set("light"));
    addEventListener("afterprint", () => set(state.read("theme")));
  }

  return { themed, onChange: (listener) => listeners.push(listener), start };
})();
