# Sources that belong to a backend, by module, relative to src/pmkvq. They are listed, not globbed: a
# file is compiled where its backend is part of the build, and where it is not, the stub that takes
# its place. Everything else of an op (contract, checks, dispatch) knows no backend.
set(PMKVQ_CPU_SOURCES_tensor
  tensor/device/buffer_cpu.cc)
set(PMKVQ_CUDA_SOURCES_tensor
  tensor/device/buffer_cuda.cc
  tensor/device/captured_work_cuda.cc
  tensor/device/device_info_cuda.cc
  tensor/device/stream_cuda.cc)
set(PMKVQ_CUDA_STUBS_tensor
  tensor/device/buffer_cuda_stub.cc
  tensor/device/captured_work_cuda_stub.cc
  tensor/device/device_info_cuda_stub.cc
  tensor/device/stream_cuda_stub.cc)
set(PMKVQ_CPU_SOURCES_kernels
  kernels/attention/attention_cpu.cc
  kernels/kv_quant/kv_quant_cpu.cc)
set(PMKVQ_CUDA_SOURCES_kernels
  kernels/attention/attention_cuda.cc
  kernels/attention/decode_attention_cuda.cu
  kernels/attention/decode_attention_d128_cuda.cu
  kernels/attention/decode_attention_d64_cuda.cu
  kernels/gemm/device_gemm_cuda.cc
  kernels/kv_quant/append_pages_cuda.cu
  kernels/kv_quant/halve_pages_cuda.cu
  kernels/kv_quant/quantize_pages_cuda.cu)
set(PMKVQ_CUDA_STUBS_kernels
  kernels/attention/attention_cuda_stub.cc
  kernels/attention/decode_attention_cuda_stub.cc
  kernels/gemm/device_gemm_cuda_stub.cc
  kernels/kv_quant/page_moves_cuda_stub.cc)
set(PMKVQ_CPU_SOURCES_kv
  kv/packed/move_executor_cpu.cc)
set(PMKVQ_CUDA_SOURCES_kv
  kv/packed/move_executor_cuda.cc)
set(PMKVQ_CUDA_STUBS_kv
  kv/packed/move_executor_cuda_stub.cc)
