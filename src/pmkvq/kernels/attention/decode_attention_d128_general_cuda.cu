#include "pmkvq/kernels/attention/decode_launch.cuh"

namespace pmkvq::cuda {
template void LaunchDecode<128, DecodeKind::kGeneral>(const DecodeArguments&, int, Stream&);
}  // namespace pmkvq::cuda
