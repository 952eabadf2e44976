// GGUF files: header, config, tokenizer, chat template and blocks. Input: the bytes of a file.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/io/gguf/gguf_config.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/text/chat_template.h"
#include "pmkvq/text/gguf_tokenizer.h"
#include "pmkvq/text/tokenizer.h"

namespace {

// What one reader refuses may still be read by the next.
template <class Read>
void Try(Read read) {
  try {
    read();
  } catch (const pmkvq::Error&) {
  }
}

// The first and the last block lie inside the file: the sanitizer sees them read.
void DecodeEnds(const pmkvq::GgufTensor& tensor) {
  const pmkvq::GgufTensorLayout& layout = pmkvq::LayoutOf(tensor.type);
  const auto format = *pmkvq::WeightFormatNamed(layout.name);
  float values[256];
  const auto expand = [&](const std::byte* block) {
    // Plain elements may lie at any address in a file.
    alignas(64) std::byte copy[256];
    std::copy_n(block, layout.block_bytes, copy);
    pmkvq::ExpandRow(pmkvq::WeightView{copy, format, 1, layout.block_values}, 0, values);
  };
  expand(tensor.data);
  expand(tensor.data + tensor.num_bytes - layout.block_bytes);
}

void ReadAll(const pmkvq::GgufSet& file) {
  for (const pmkvq::GgufTensor& tensor : file.tensors()) {
    if (tensor.rows < 1 || tensor.cols < 1) std::abort();
    if (file.FindTensor(tensor.name) != &tensor) std::abort();
    DecodeEnds(tensor);
  }
  Try([&] { pmkvq::ParseGgufConfig(file); });
  Try([&] {
    const auto tokenizer = pmkvq::Tokenizer::FromData(pmkvq::GgufTokenizerData(file), "fuzz");
    const std::vector<int32_t> ids = tokenizer->EncodeWhole("Hello, \xe4\xb8\x96 <s>", true);
    tokenizer->Decode(ids);
  });
  for (const char* role : {"bos", "eos"}) Try([&] { pmkvq::GgufSpecialToken(file, role); });
  Try([&] { pmkvq::ChatTemplate::FromJinja(pmkvq::GgufChatTemplate(file, ""), "fuzz"); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> bytes(size);
  std::transform(data, data + size, bytes.begin(), [](uint8_t b) { return std::byte{b}; });
  Try([&] { ReadAll(pmkvq::GgufSet::FromMemory("fuzz", std::move(bytes))); });
  return 0;
}
