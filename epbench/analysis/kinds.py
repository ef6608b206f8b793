"""What a kernel does, from its name: the one thing that every library tells the profiler.

The first pattern that is found anywhere in a name decides, so special ones stand before general ones: a cutlass
kernel that is attention is attention, and the add of a split-K product is part of the product. A fused kernel of
torch.compile is named after its template and its operators: ``triton_poi`` is pointwise; ``triton_red`` and
``triton_per`` reduce, as a norm if a norm is among their operators. What no pattern knows is ``other``, and its
share of the time is recorded beside every table of kinds.

On a CPU there are no kernels, and operators stand in for them, each with its own time, less that of the operators
within. Views, allocations and the layers of dispatch compute nothing: that time belongs to the host.
"""

import re

__all__ = [
    "COMMUNICATION",
    "KINDS",
    "OTHER",
    "is_communication",
    "kind_of_annotation",
    "kind_of_kernel",
    "kind_of_operator",
]

COMMUNICATION, OTHER = "communication", "other"

_KERNELS = (
    (
        COMMUNICATION,
        r"^nccl|^gloo:|nvshmem|allToAllV|exchangeSplitAndOffset|deep_?ep::|^Memcpy (PtoP|P2P)"
        r"|(one|two)_shot_all_(reduce|gather)|multimem_|symm_mem|symmetric_memory|nccl_extension|(put|wait)_signal_kernel"
        r"|kernel_barrier|\bbarrier_kernel",
    ),
    (
        "copy",
        r"^Mem(cpy|set)|chunk_cat|split_with_sizes_copy|CatArray|copy_kernel|_copy\b|CopyFunctor|FillFunctor"
        r"|_to_(float|bfloat16|half)_|cast_transpose|roll_cuda|triu_tril|reflection_pad|_padding",
    ),
    ("attention", r"flash|fmha|sdpa|attention|\bmha_"),
    ("grouped_gemm", r"grouped_?(gemm|mm)|group_?gemm|gemm_?grouped|GroupProblemShape|ArrayTmaGmma|PtrArray"),
    ("reduction", r"LpNorm"),
    ("optimizer", r"adam|FusedSgd|FusedOptimizer|multi_tensor_apply|foreach"),
    ("gemm", r"gemm|nvjet|cutlass|xmma|gemv|splitK|cublas|triton_tem_fused_.*mm|triton_mm|\bdot_kernel"),
    (
        "norm",
        r"(layer|rms|group|batch|weight)_?norm|RowwiseMoments|GammaBeta|FusedParamsCUDA|triton_(red|per)_fused_.*(norm|rsqrt)",
    ),
    ("reduction", r"triton_(red|per)_"),
    ("pointwise", r"triton_(poi|for)_"),
    (
        "index",
        r"index|gather|scatter|embedding|sort|radix|topk|permute|searchsorted|histogram|bincount|DeviceScan|cumsum"
        r"|nonzero|repeat_interleave|DeviceSelect|DeviceCompact|DeviceRunLength|DevicePartition|DeviceMerge"
        r"|tensor_kernel_scan|scan_by_key|compute_cuda_kernel|krn_partial|calc_block_sums|final_scan|write_indices|take_put"
        r"|adjacent_?difference|UniqueByKey|flag_kernel|randperm|cuda_cub::core",
    ),
    ("reduction", r"reduc|softmax|nll_loss|cross_entropy|logsumexp|vector_norm"),
    (
        "pointwise",
        r"elementwise|pointwise|functor|silu|swiglu|dropout|distribution|arange|rope|rotary"
        r"|assert_async|amp_update_scale|masked_scale|bernoulli|normal_kernel|uniform_kernel|exponential_kernel|\bglu_"
        r"|transform_kernel|unpack_cudnn",
    ),
)

_OPERATORS = (  # of torch's own namespaces; the name without its namespace is matched
    ("attention", r"attention"),
    ("grouped_gemm", r"grouped_(mm|linear)"),
    ("gemm", r"^(mm|bmm|addmm|baddbmm|mv|addmv|addbmm|linear|matmul|dot|_scaled_mm|_int_mm|einsum|outer)$|convolution"),
    (
        "copy",
        r"^(copy_|_to_copy|to|clone|contiguous|cat|stack|fill_|zero_|fill|_foreach_(copy|zero)_|chunk_cat|_chunk_cat"
        r"|.*_copy(_in|_out)?|pad|constant_pad_nd|roll|flip|repeat|tril_?|triu_?|_local_scalar_dense|one_hot)$",
    ),
    ("reduction", r"^_foreach_norm$"),
    ("optimizer", r"^_fused_(adam|sgd|adagrad)|^_foreach_"),
    ("norm", r"(layer|rms|group|batch)_norm"),
    (
        "index",
        r"^(index|gather|scatter|embedding|sort|argsort|topk|searchsorted|bucketize|bincount|histc|nonzero|cumsum"
        r"|repeat_interleave|masked_(select|scatter)|take|unique|permute_|permute$|unpermute|expand$|_index_put)"
        r"|value_selecting_reduction",
    ),
    (
        "reduction",
        r"^(sum|mean|amax|amin|max|min|argmax|argmin|all|any|prod|std|var|norm|linalg_vector_norm|logsumexp"
        r"|_?(log_)?softmax.*|_(log_)?softmax_backward_data|nll_loss.*|cross_entropy.*|count_nonzero|isfinite|equal)$",
    ),
    (
        "pointwise",
        r"^(add|sub|rsub|mul|div|neg|pow|sqrt|rsqrt|reciprocal|square|exp|log|log1p|abs|sign|clamp|clamp_min|clamp_max"
        r"|floor|ceil|round|sin|cos|tanh|sigmoid|silu|gelu|relu|where|masked_fill|eq|ne|lt|le|gt|ge|maximum|minimum"
        r"|bitwise_\w+|logical_\w+|__\w+__|remainder|fmod|floor_divide|true_divide|addcmul|addcdiv|lerp|isnan|isinf"
        r"|arange|linspace|normal|uniform|random|randn|rand|randint|bernoulli|dropout|erfinv|expm1|xlogy)_?$"
        r"|_backward$",
    ),
)

_COMPILED = re.compile(r"## Call CompiledFxGraph|(graph_\d+_)?cpp_fused_")
_HOST_NAMESPACES = re.compile(r"^(c10d|_?c10d_functional|autograd|torch|profiler|symm_mem)::")
_COLLECTIVES_OF_OURS = re.compile(
    r"all_to_all|exchange_counts|await_splits|(gather|scatter)_sequence|all_(gather|reduce)$|reduce_sc"
)
_VIEWS_AND_ALLOCATIONS = re.compile(
    r"^(view|_?unsafe_view|_reshape_alias|reshape|as_strided|slice|select|narrow|split|split_with_sizes|chunk|unbind"
    r"|transpose|t|permute|mT|numpy_T|expand|expand_as|squeeze|unsqueeze|flatten|unflatten|view_as|movedim|swapaxes"
    r"|detach|alias|lift_fresh|empty|empty_like|empty_strided|new_\w+|zeros|zeros_like|ones|ones_like|full|full_like"
    r"|resize|set|resolve_conj|resolve_neg|result_type|item|is_\w+|type_as|scalar_tensor|record_stream|real|diagonal"
    r"|size|stride|numel|sym_\w+|can_cast|promote_types|_version|requires_grad|retain_grad|data|unfold|_fw_primal"
    r"|_to_cpu|pin_memory|_pin_memory|_has_\w+|_assert\w*|_nested\w*|conj|view_as_real|view_as_complex)_?$"
)

_Table = tuple[tuple[str, re.Pattern[str]], ...]


def _compiled(table: tuple[tuple[str, str], ...]) -> _Table:
    return tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in table)


_KERNEL_TABLE, _OPERATOR_TABLE = _compiled(_KERNELS), _compiled(_OPERATORS)
KINDS = (*dict.fromkeys(kind for kind, _ in _KERNELS), OTHER)


def kind_of_kernel(name: str) -> str:
    """One of ``KINDS`` for the name of a kernel, a copy or a fill on the device."""
    return _first(_KERNEL_TABLE, name)


def kind_of_annotation(name: str) -> str | None:
    """What torch.compile made for a CPU has one annotation a graph, and is ``pointwise``; any other is the host's."""
    return "pointwise" if _COMPILED.match(name) else None


def kind_of_operator(name: str) -> str | None:
    """One of ``KINDS`` for an operator of a CPU's time line; None if its own time is the host's."""
    namespace, _, operator = name.rpartition("::")
    if not namespace or " " in namespace or _HOST_NAMESPACES.match(name):
        return None
    if namespace == "aten" and _VIEWS_AND_ALLOCATIONS.match(operator):
        return None
    if namespace == "epbench" and _COLLECTIVES_OF_OURS.search(operator):
        return None
    return _first(_OPERATOR_TABLE, operator)


def is_communication(name: str) -> bool:
    """Whether a kernel or copy moves data between ranks: NCCL, gloo, NVSHMEM, symmetric memory, peer copies."""
    return kind_of_kernel(name) == COMMUNICATION


def _first(table: _Table, name: str) -> str:
    return next((kind for kind, pattern in table if pattern.search(name)), OTHER)
