#include "pmkvq/kernels/sampling/device_sampler.h"

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

size_t ScratchBytes(DeviceId device, int64_t vocab_size, int64_t max_rows) {
  PMKVQ_CHECK(vocab_size > 0 && vocab_size <= DeviceSampler::kMostVocabulary && max_rows > 0);
  return internal::DeviceSamplerScratchBytes(device, vocab_size, max_rows);
}

}  // namespace

DeviceSampler::DeviceSampler(DeviceId device, int64_t vocab_size, int64_t max_rows)
    : vocab_size_(vocab_size),
      max_rows_(max_rows),
      scratch_(device, ScratchBytes(device, vocab_size, max_rows)) {}

void DeviceSampler::Launch(const float* logits, int64_t rows, const DeviceDraw* draws,
                           DeviceDrawn* out, Stream& stream) {
  PMKVQ_CHECK(rows >= 0 && rows <= max_rows_ && stream.device() == scratch_.device());
  if (rows == 0) return;
  PMKVQ_CHECK(logits != nullptr && draws != nullptr && out != nullptr);
  internal::RunDeviceSampler(logits, vocab_size_, rows, draws, out, scratch_.view(), stream);
}

}  // namespace pmkvq
