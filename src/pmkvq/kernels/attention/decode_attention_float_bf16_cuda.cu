#include "pmkvq/kernels/attention/decode_float.cuh"

namespace pmkvq::cuda {
template void LaunchFloatDecode<__nv_bfloat16, 64>(const DecodeArguments&, int, Stream&);
template void LaunchFloatDecode<__nv_bfloat16, 128>(const DecodeArguments&, int, Stream&);
template void LaunchFloatDecode<__nv_bfloat16, 256>(const DecodeArguments&, int, Stream&);
}  // namespace pmkvq::cuda
