// Keeps BLAS from starting threads inside our loops, without changing the host process's setting.
#pragma once

namespace pmkvq::internal {

// While at least one of these lives, OpenBLAS works on one thread: our loops share out the work,
// and the bits of a product must not depend on BLAS's threads.
//
// The setting is one of the whole process. The first of them stores it and the last one puts it
// back, so several engines may compute at once. Meanwhile the host's calls to BLAS use one
// thread, too, and a number of threads that the host sets is lost at the end.
class OneBlasThread {
 public:
  OneBlasThread();
  ~OneBlasThread();
  OneBlasThread(const OneBlasThread&) = delete;
  OneBlasThread& operator=(const OneBlasThread&) = delete;
};

}  // namespace pmkvq::internal
