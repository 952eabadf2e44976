#include "pmkvq/base/check.h"
#include "pmkvq/tensor/device/captured_work.h"

namespace pmkvq {

CapturedWork::CapturedWork(Stream& stream, const std::function<void()>& /*work*/) {
  internal::ThrowNoBackend(stream.device(), "recorded work");
}
CapturedWork::~CapturedWork() = default;
void CapturedWork::Launch(Stream& /*stream*/) {
  PMKVQ_CHECK_MSG(graph_ != nullptr, "there is no stream of this device");
}
CapturedWork::Counts CapturedWork::CountsSoFar() { return {}; }

}  // namespace pmkvq
