#include "pmkvq/kernels/gemm/blas_threads.h"

#include <cblas.h>

#include <mutex>

namespace pmkvq::internal {
namespace {

std::mutex mutex;
int num_users = 0;
int threads_before = 1;

}  // namespace

OneBlasThread::OneBlasThread() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (num_users++ > 0) return;
  threads_before = openblas_get_num_threads();
  if (threads_before != 1) openblas_set_num_threads(1);
}

OneBlasThread::~OneBlasThread() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (--num_users == 0 && threads_before != 1) openblas_set_num_threads(threads_before);
}

}  // namespace pmkvq::internal
