"""Names of kernels as profilers wrote them, and what each does."""

import pytest

from epbench.analysis.kinds import (
    KINDS,
    is_communication,
    kind_of_annotation,
    kind_of_kernel,
    kind_of_operator,
)

MULTI_TENSOR = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
KERNELS = [
    ("communication", "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"),
    ("communication", "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)"),
    ("communication", "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"),
    ("communication", "ncclDevKernel_AllReduce_Sum_bf16_TREE_LL(ncclDevKernelArgsStorage<4096ul>)"),
    ("communication", "ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)"),
    ("communication", "ncclSymkDevKernel_AllGather_LL(ncclSymkDevWorkArgs)"),
    ("communication", "c10d::nvshmem_extension::exchangeSplitAndOffset(long*, long*, int)"),
    ("communication", "c10d::nvshmem_extension::allToAllV(void*, void*, long*, unsigned long, int)"),
    (
        "communication",
        "c10d::nvshmem_extension::allToAllV_2d(void*, void*, long*, long*, unsigned long, int, int, long)",
    ),
    ("communication", "void c10d::nvshmem_extension::tile_reduce_kernel<float>(float*, float*)"),
    ("communication", "nvshmemi_transfer_barrier_all"),
    ("communication", "void deep_ep::intranode::dispatch<8, 768, 8192>(int4*, float*)"),
    ("communication", "Memcpy PtoP (Device -> Device)"),
    ("copy", "Memcpy DtoD (Device -> Device)"),
    ("copy", "Memcpy DtoH (Device -> Pinned)"),
    ("copy", "Memset (Device)"),
    ("copy", "void at::native::(anonymous namespace)::CatArrayBatchedCopy_contig<at::native::OpaqueType<2u>, 2>()"),
    ("copy", "void at::native::(anonymous namespace)::chunk_cat_cuda_kernel<float, c10::BFloat16>(unsigned long*)"),
    ("copy", "void at::native::(anonymous namespace)::split_with_sizes_copy_out_contiguous_no_cast_kernel<char>()"),
    (
        "copy",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, std::array<char*, 1ul>>()",
    ),
    (
        "copy",
        "void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda"
        "(at::TensorIteratorBase&)::{lambda(float)#1}>()",
    ),
    (
        "copy",
        "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::"
        "direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}>(at::TensorIteratorBase&)>()",
    ),
    (
        "attention",
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, cutlass::bfloat16_t>>()",
    ),
    ("attention", "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<128>>()"),
    ("attention", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_31_64x128x128_4x1x1_kernel0_0"),
    ("attention", "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x128x128_4x1x1_kernel0_0"),
    (
        "attention",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>)",
    ),
    ("attention", "triton_tem_fused_flex_attention_0"),
    ("gemm", "nvjet_tst_192x192_64x4_2x1_v_bz_coopA_TNN"),
    ("gemm", "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT"),
    ("gemm", "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off"),
    ("gemm", "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x8_stage3_warpsize1x2x1_ffma_aligna4_alignc4"),
    ("gemm", "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>()"),
    ("gemm", "ampere_sgemm_128x64_tn"),
    ("gemm", "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, false>()"),
    ("gemm", "void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4, false, false>()"),
    ("gemm", "triton_tem_fused_mm_3"),
    (
        "grouped_gemm",
        "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<cute::tuple"
        "<int, int, int>>, cutlass::gemm::collective::CollectiveMma<cutlass::gemm::MainloopSm90ArrayTmaGmma"
        "WarpSpecialized<4, cute::tuple<cute::C<2>, cute::C<1>, cute::C<1>>>>>>()",
    ),
    ("grouped_gemm", "void at::cuda::detail::prepare_grouped_gemm_data<cutlass::bfloat16_t>(cutlass::bfloat16_t*)"),
    ("grouped_gemm", "triton_tem_fused__grouped_mm_1"),
    (
        "optimizer",
        MULTI_TENSOR + "FusedOptimizerTensorListMetadata<4>, (anonymous namespace)::FusedAdamMathFunctor<float, 4>>()",
    ),
    (
        "optimizer",
        MULTI_TENSOR + "TensorListMetadata<2>, (anonymous namespace)::BinaryOpScalarTensorFunctor<float, 2>>()",
    ),
    ("reduction", MULTI_TENSOR + "TensorListMetadata<1>, (anonymous namespace)::LpNormFunctor<float, (NormType)1>>()"),
    ("reduction", "void at::native::lpnorm_cleanup<float, (at::native::NormType)1, float, float>()"),
    (
        "copy",
        MULTI_TENSOR + "TensorListMetadata<2>, (anonymous namespace)::CopyFunctor<float, c10::BFloat16, 2, 1, 1>>()",
    ),
    ("norm", "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, true>()"),
    ("norm", "void at::native::(anonymous namespace)::cuComputePartGradGammaBeta<c10::BFloat16, float, true>()"),
    ("norm", "triton_per_fused__to_copy_add_mean_mul_pow_rsqrt_4"),
    ("norm", "triton_red_fused__fused_rms_norm_backward_2"),
    ("reduction", "triton_red_fused_sum_7"),
    ("pointwise", "triton_poi_fused_mul_silu_5"),
    ("pointwise", "triton_poi_fused_index_put_new_zeros_0"),
    (
        "index",
        "void at::native::index_elementwise_kernel<128, 4, at::native::gpu_index_kernel<index_put_kernel_impl>>()",
    ),
    ("index", "void at::native::indexing_backward_kernel<float, 4>(long const*, long const*, float const*, float*)"),
    (
        "index",
        "void at::native::vectorized_gather_kernel<16, long>(char*, char*, long*, int, long, long, long, long, bool)",
    ),
    ("index", "void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long, unsigned int>()"),
    ("index", "void at::native::_scatter_gather_elementwise_kernel<128, 8, _cuda_scatter_gather_internal_kernel>()"),
    ("index", "void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>()"),
    ("index", "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<DeviceRadixSortPolicy<int, long>::Policy900>()"),
    ("index", "void at_cuda_detail::cub::DeviceScanKernel<DeviceScanPolicy<long>::Policy900>()"),
    ("index", "void at::native::(anonymous namespace)::embedding_backward_feature_kernel<float, float, long>()"),
    (
        "reduction",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, sum_functor<float, float, float>>>()",
    ),
    ("reduction", "void (anonymous namespace)::softmax_warp_forward<float, float, float, 7, false, false>()"),
    (
        "reduction",
        "void at::native::(anonymous namespace)::nll_loss_forward_reduce_cuda_kernel_2d<float, float, long>()",
    ),
    ("pointwise", "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>()"),
    ("pointwise", "void at::native::unrolled_elementwise_kernel<at::native::(anonymous namespace)::silu_kernel>()"),
    ("pointwise", "void at::native::(anonymous namespace)::distribution_elementwise_grid_stride_kernel<float, 4>()"),
    ("communication", "void c10d::symmetric_memory::multimem_one_shot_reduce_kernel<float, 16>(float*, float*)"),
    ("communication", "c10d::nccl_extension::lsa_put_signal_kernel(unsigned long*, int)"),
    ("communication", "c10d::nccl_extension::nccl_wait_for_signal_kernel(unsigned long*, unsigned long)"),
    ("communication", "c10d::cuda::detail::kernel_barrier(int*, bool*, unsigned long)"),
    ("communication", "ncclDevKernel_Broadcast_RING_LL(ncclDevKernelArgsStorage<4096ul>)"),
    (
        "copy",
        "void at::native::triu_tril_kernel<float, int, false, 4, false>(at::cuda::detail::TensorInfo<float, int>)",
    ),
    ("copy", "_float_to_bfloat16_cuda_kernel(float const*, int, int, unsigned short*)"),
    ("copy", "Memcpy HtoD (Pinned -> Device)"),
    (
        "attention",
        "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwd"
        "Sm90<2, cute::tuple<cute::C<1>>>>>>()",
    ),
    ("gemm", "nvjet_sm90_tst_64x128_64x7_2x2_v_bz_NNT"),
    ("gemm", "void cutlass::Kernel2<cutlass_80_simt_sgemm_256x128_8x4_tn_align1>(cutlass_80_simt_sgemm::Params)"),
    ("gemm", "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, float, float, float, float>()"),
    ("norm", "void at::native::weight_norm_fwd_first_dim_kernel<float, float>(float*, float*, float const*)"),
    ("index", "void at::cuda::cub::final_scan_kernel<long, 256, 16>(long const*, long*, long*, long)"),
    ("index", "void at::native::write_indices<long>(long*, at::native::TensorDims<long>, int, long)"),
    (
        "index",
        "void thrust::THRUST_300001_SM_900_NS::cuda_cub::core::detail::_kernel_agent<thrust::cuda_cub::__merge_sort::"
        "MergeAgent<long*, long*, long>>()",
    ),
    ("index", "void at::native::cuda_take_put_kernel<float, unsigned int>(at::TensorIterator&)"),
    ("pointwise", "void at::native::_assert_async_cuda_kernel<bool>(bool const*, at::native::Msg)"),
    ("pointwise", "void at_cuda_detail::cub::detail::transform::transform_kernel<policy_hub<long>, long>(long)"),
    ("pointwise", "at::native::amp_update_scale_cuda_kernel(float*, int*, float const*, double, double, int)"),
    ("other", "at::cuda::spin_kernel(long)"),
    ("other", "my_very_own_thing"),
]
OPERATORS = [
    ("gemm", "aten::mm"),
    ("gemm", "aten::addmm"),
    ("grouped_gemm", "aten::_grouped_mm"),
    ("grouped_gemm", "epbench::grouped_linear_backward"),
    ("attention", "aten::_scaled_dot_product_flash_attention_for_cpu_backward"),
    ("optimizer", "aten::_fused_adamw_"),
    ("norm", "aten::_fused_rms_norm"),
    ("index", "aten::scatter_add_"),
    ("index", "aten::embedding_dense_backward"),
    ("index", "epbench::permute"),
    ("copy", "aten::copy_"),
    ("copy", "fsdp::split_with_sizes_copy"),
    ("copy", "fsdp::all_gather_copy_in"),
    ("reduction", "aten::_foreach_norm"),
    ("reduction", "aten::_softmax_backward_data"),
    ("pointwise", "aten::silu_backward"),
    ("pointwise", "aten::__or__"),
    ("other", "aten::some_operator_of_tomorrow"),
    (None, "aten::view"),
    (None, "aten::permute"),
    (None, "aten::empty_strided"),
    (None, "c10d::alltoall_base_"),
    (None, "_c10d_functional::wait_tensor"),
    (None, "epbench::all_to_all"),
    (None, "epbench::gather_sequence"),
    (None, "autograd::engine::evaluate_function: MmBackward0"),
    (None, "torch::autograd::AccumulateGrad"),
    (None, "MmBackward0"),
    (None, "Torch-Compiled Region: 0/0"),
]


@pytest.mark.parametrize(("kind", "name"), KERNELS)
def test_the_kind_of_a_kernel(kind: str, name: str) -> None:
    assert kind_of_kernel(name) == kind
    assert is_communication(name) == (kind == "communication")


@pytest.mark.parametrize(("kind", "name"), OPERATORS)
def test_the_kind_of_an_operator(kind: str | None, name: str) -> None:
    assert kind_of_operator(name) == kind


def test_compiled_code_computes_and_other_annotations_do_not() -> None:
    assert kind_of_annotation("## Call CompiledFxGraph f4phlt53q62tv6z4d7sr6k3ka63a4irnqp36zzaafid74s") == "pointwise"
    assert kind_of_annotation("FSDP::all_gather (layers.0)") is None


def test_every_kind_occurs() -> None:
    assert {kind for kind, _ in KERNELS} == set(KINDS)
