#include "pmkvq/kernels/attention/decode_float.cuh"

namespace pmkvq::cuda {
template void LaunchFloatDecode<__half, 256>(const DecodeArguments&, int, Stream&);
}  // namespace pmkvq::cuda
