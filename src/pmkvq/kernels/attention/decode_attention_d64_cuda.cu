#include "pmkvq/kernels/attention/decode_launch.cuh"

namespace pmkvq::cuda {
template void LaunchDecode<64, DecodeKind::kPlain>(DecodeArguments, int, Stream&);
}  // namespace pmkvq::cuda
