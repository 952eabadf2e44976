// cuBLASLt is column-major: a row-major matrix [r, c] is a column-major one [c, r]. So C^T =
// op(B)^T A^T is computed, with B as the library's first operand.
#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <compare>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/gemm/device_gemm.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {
namespace {

using internal::CheckCuda;
using internal::CudaDeviceScope;

// What the library's documentation recommends from sm_90 on.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr uint32_t kAlignment = 16;  // Of operands, as the header demands.
// Prompts of ever new lengths must not fill the memory. An algorithm that is chosen again is the
// same.
constexpr size_t kMostPlans = 4096;

void CheckLt(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError("cuda", fmt::format("{}: {} ({})", what, cublasLtGetStatusString(status),
                                        cublasLtGetStatusName(status)));
}

cudaDataType_t TypeOf(DType type) {
  switch (type) {
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kBF16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

// All that the choice of an algorithm may depend on.
struct Key {
  DType type;
  DType out_type;
  bool transpose_a;
  bool transpose_b;
  bool allow_tf32;
  bool accumulate;
  std::array<int64_t, 10> sizes;

  auto operator<=>(const Key&) const = default;
};

Key KeyOf(const DeviceGemm::Batched& p) {
  return {p.type,
          p.out_type,
          p.transpose_a,
          p.transpose_b,
          p.allow_tf32,
          p.beta != 0.0f,
          {p.batches, p.m, p.n, p.k, p.lda, p.ldb, p.ldc, p.stride_a, p.stride_b, p.stride_c}};
}

// Structures of the library that need no destruction.
struct Plan {
  cublasLtMatmulDescOpaque_t operation{};
  cublasLtMatrixLayoutOpaque_t a{};  // Of the row-major operands.
  cublasLtMatrixLayoutOpaque_t b{};
  cublasLtMatrixLayoutOpaque_t c{};
  cublasLtMatmulAlgo_t algorithm{};
  bool is_warm = false;
};

// The column-major view of a row-major matrix of `cols` columns.
void InitLayout(cublasLtMatrixLayoutOpaque_t& layout, DType type, int64_t rows, int64_t cols,
                int64_t leading, int64_t batches, int64_t stride) {
  CheckLt(cublasLtMatrixLayoutInit(&layout, TypeOf(type), static_cast<uint64_t>(cols),
                                   static_cast<uint64_t>(rows), leading),
          "a product's operand");
  if (batches == 1) return;
  const auto count = static_cast<int32_t>(batches);
  CheckLt(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                           sizeof(count)),
          "a product's batch");
  CheckLt(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                           &stride, sizeof(stride)),
          "a product's batch");
}

void InitDescription(const DeviceGemm::Batched& p, Plan& plan) {
  const bool is_tf32 = p.type == DType::kF32 && p.allow_tf32;
  CheckLt(
      cublasLtMatmulDescInit(
          &plan.operation, is_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F),
      "a product");
  const int32_t first = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  CheckLt(cublasLtMatmulDescSetAttribute(&plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &first,
                                         sizeof(first)),
          "a product");
  const int32_t second = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  CheckLt(cublasLtMatmulDescSetAttribute(&plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, &second,
                                         sizeof(second)),
          "a product");
  InitLayout(plan.a, p.type, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.lda, p.batches,
             p.stride_a);
  InitLayout(plan.b, p.type, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.ldb, p.batches,
             p.stride_b);
  InitLayout(plan.c, p.out_type, p.m, p.n, p.ldc, p.batches, p.stride_c);
}

class Preference {
 public:
  Preference() {
    CheckLt(cublasLtMatmulPreferenceInit(&preference_), "a product's preferences");
    // Reductions in place are done by atomic additions, in any order.
    const uint32_t reductions =
        CUBLASLT_REDUCTION_SCHEME_MASK & ~static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_INPLACE);
    Set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    Set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
    Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kAlignment);
    Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kAlignment);
    Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kAlignment);
    Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kAlignment);
  }

  cublasLtMatmulPreferenceOpaque_t* get() { return &preference_; }

 private:
  template <class T>
  void Set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    CheckLt(cublasLtMatmulPreferenceSetAttribute(&preference_, attribute, &value, sizeof(value)),
            "a product's preferences");
  }

  cublasLtMatmulPreferenceOpaque_t preference_{};
};

// Of a whole matrix, rounded up so that another one may follow.
size_t AreaOf(DType type, int64_t rows, int64_t cols) {
  return (static_cast<size_t>(rows * cols) * SizeOf(type) + 255) / 256 * 256;
}

// Memory that is taken where there is enough.
class SpareMemory {
 public:
  explicit SpareMemory(size_t num_bytes) {
    const cudaError_t status = cudaMalloc(&data_, num_bytes);
    if (status == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      data_ = nullptr;
      return;
    }
    CheckCuda(status, "allocating memory");
  }
  ~SpareMemory() { static_cast<void>(cudaFree(data_)); }
  SpareMemory(const SpareMemory&) = delete;
  SpareMemory& operator=(const SpareMemory&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

}  // namespace

struct DeviceGemm::State {
  State(DeviceId id, std::optional<int> asked)
      : device(id), choice(asked), workspace(id, kWorkspaceBytes) {
    CheckLt(cublasLtCreate(&handle), "starting cuBLASLt");
  }
  ~State() { static_cast<void>(cublasLtDestroy(handle)); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  Plan& PlanOf(const Batched& product);
  cublasLtMatmulAlgo_t Choose(const Batched& product, Plan& plan);

  DeviceId device;
  std::optional<int> choice;  // None: by rule.
  cublasLtHandle_t handle = nullptr;
  Buffer workspace;
  Preference preference;
  std::map<Key, Plan> plans;
};

namespace {

// Of the likely fastest algorithms the place of the one that is taken: a function of what the
// library says about them, never of a time. For few rows and a wide matrix an algorithm that fills
// the device twice, and its last round too, was 4 to 6 % faster than one in a single round, which
// the library prefers (docs/performance.md): nothing is copied while a single round ends.
size_t PlaceByRule(const DeviceGemm::Batched& product,
                   const std::vector<const cublasLtMatmulHeuristicResult_t*>& candidates) {
  constexpr int64_t kMostRows = 128;
  constexpr size_t kMostPlaces = 4;
  constexpr float kFull = 0.96f;
  const auto splits_of = [](const cublasLtMatmulHeuristicResult_t& candidate) {
    int32_t splits = 1;
    size_t written = 0;
    CheckLt(cublasLtMatmulAlgoConfigGetAttribute(&candidate.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                 &splits, sizeof(splits), &written),
            "a product's algorithm");
    return splits;
  };
  const cublasLtMatmulHeuristicResult_t& first = *candidates.front();
  if (product.batches > 1 || product.m > kMostRows || first.wavesCount > 1.0f ||
      splits_of(first) > 1) {
    return 0;
  }
  for (size_t i = 1; i < std::min(candidates.size(), kMostPlaces); ++i) {
    const float rounds = candidates[i]->wavesCount;
    if (rounds > 1.0f && rounds >= kFull * std::ceil(rounds) && splits_of(*candidates[i]) <= 1) {
      return i;
    }
  }
  return 0;
}

}  // namespace

cublasLtMatmulAlgo_t DeviceGemm::State::Choose(const Batched& product, Plan& plan) {
  std::array<cublasLtMatmulHeuristicResult_t, DeviceGemm::kMostChoices> candidates{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, &plan.operation, &plan.b, &plan.a, &plan.c, &plan.c, preference.get(),
      DeviceGemm::kMostChoices, candidates.data(), &count);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) CheckLt(status, "choosing a product's algorithm");
  // The likely fastest come first.
  std::vector<const cublasLtMatmulHeuristicResult_t*> fitting;
  for (const auto& candidate : std::span(candidates).first(static_cast<size_t>(count))) {
    if (candidate.state != CUBLAS_STATUS_SUCCESS || candidate.workspaceSize > kWorkspaceBytes) {
      continue;
    }
    fitting.push_back(&candidate);
  }
  if (!fitting.empty()) {
    const size_t last = fitting.size() - 1;
    const size_t place = choice ? static_cast<size_t>(*choice) : PlaceByRule(product, fitting);
    return fitting[std::min(place, last)]->algo;
  }
  throw Unsupported(
      NameOf(device),
      fmt::format(
          "product of {}: cuBLASLt has no algorithm for {} rows, found {} outputs of {} "
          "inputs (in memory {}, {} and {} apart), expected multiples of 8; use --device cpu",
          NameOf(product.type), product.m, product.n, product.k, product.lda, product.ldb,
          product.ldc));
}

Plan& DeviceGemm::State::PlanOf(const Batched& product) {
  const Key key = KeyOf(product);
  const auto known = plans.find(key);
  if (known != plans.end()) return known->second;
  if (plans.size() >= kMostPlans) plans.clear();
  Plan plan;
  InitDescription(product, plan);
  plan.algorithm = Choose(product, plan);
  return plans.emplace(key, plan).first->second;
}

DeviceGemm::DeviceGemm(DeviceId device, std::optional<int> choice) : device_(device) {
  const CudaDeviceScope scope(device);
  state_ = std::make_unique<State>(device, choice);
}

DeviceGemm::~DeviceGemm() = default;

void DeviceGemm::Launch(const Batched& product, Stream& stream) {
  const CudaDeviceScope scope(device_);
  Plan& plan = state_->PlanOf(product);
  CheckLt(
      cublasLtMatmul(state_->handle, &plan.operation, &product.alpha, product.b, &plan.b, product.a,
                     &plan.a, &product.beta, product.c, &plan.c, product.c, &plan.c,
                     &plan.algorithm, state_->workspace.data(), kWorkspaceBytes, stream.handle()),
      "a product of matrices");
}

void DeviceGemm::Warm(const Batched& product, Stream& stream) {
  const CudaDeviceScope scope(device_);
  Plan& plan = state_->PlanOf(product);
  if (plan.is_warm) return;
  plan.is_warm = true;
  // From the first element of a batch's first matrix to behind the last line of its last one.
  const auto area = [&](DType type, int64_t lines, int64_t ld, int64_t stride) {
    return AreaOf(type, 1, (product.batches - 1) * stride + lines * ld);
  };
  const size_t a = area(product.type, product.transpose_a ? product.k : product.m, product.lda,
                        product.stride_a);
  const size_t b = area(product.type, product.transpose_b ? product.n : product.k, product.ldb,
                        product.stride_b);
  const size_t c = area(product.out_type, product.m, product.ldc, product.stride_c);
  const SpareMemory memory(a + b + c);
  if (memory.data() == nullptr) return;
  FillOnDevice(stream, memory.data(), 0, a + b + c);
  Batched trial = product;
  trial.a = memory.data();
  trial.b = memory.data() + a;
  trial.c = memory.data() + a + b;
  Launch(trial, stream);
  stream.Synchronize();
}

}  // namespace pmkvq
