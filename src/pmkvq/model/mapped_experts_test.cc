// Experts stay in their file: neither loading nor a step reads those that no row has chosen.
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

#include "pmkvq/model/blocks/mlp_moe.h"
#include "pmkvq/model/model.h"
#include "support/dense_kv_store.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::TempFolder;
using testing_support::TinyModel;

// Bytes of the mappings of `path` that this process has touched, with what the system maps around
// them (64 KiB).
int64_t ResidentBytes(const std::string& path) {
  std::ifstream file("/proc/self/smaps");
  int64_t bytes = 0;
  bool is_mapping_of_path = false;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string first;
    int64_t kib = 0;
    words >> first;
    if (first.find('-') != std::string::npos) is_mapping_of_path = line.ends_with(path);
    if (is_mapping_of_path && first == "Rss:" && words >> kib) bytes += kib << 10;
  }
  return bytes;
}

TEST(MappedExperts, OnlyThoseThatAStepNeedsAreRead) {
  const TinyModel tiny{.architecture = "Qwen3MoeForCausalLM",
                       .hidden = 256,
                       .layers = 1,
                       .qk_norm = true,
                       .experts = 16,
                       .chosen = 2,
                       .expert_inner = 512};
  constexpr int64_t kMatrixBytes = 256 * 512 * 4;
  const TempFolder folder;
  WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
  const std::string path = folder.File("model.safetensors");
  const auto model = Model::Load(folder.path());
  const int64_t loaded = ResidentBytes(path);
  EXPECT_LT(loaded, 3 * kMatrixBytes) << "of 48 matrices of experts";

  testing_support::DenseKvStore store(model->kv_geometry());
  ForwardWorkspace workspace;
  const SequenceId seq = store.Open().value();
  const int32_t token = 7;
  const ForwardChunk chunk{seq, {&token, 1}, 0, ForwardChunk::Logits::kAll};
  ThrowIfFailed(model->Forward({&chunk, 1}, store, workspace, 1));
  const int64_t read = ResidentBytes(path) - loaded;
  EXPECT_GE(read, 2 * 3 * kMatrixBytes - loaded) << "three matrices of two experts";
  EXPECT_LT(read, 2 * 3 * (kMatrixBytes + (128 << 10)) + 2 * kMatrixBytes);
}

}  // namespace
}  // namespace pmkvq
