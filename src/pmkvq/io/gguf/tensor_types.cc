#include "pmkvq/io/gguf/tensor_types.h"

#include <fmt/format.h>

namespace pmkvq {
namespace {

struct ForeignType {
  uint32_t code;
  const char* name;
};

// Types that the format has and this program does not read.
constexpr ForeignType kForeignTypes[] = {
    {9, "Q8_1"},    {15, "Q8_K"},   {16, "IQ2_XXS"}, {17, "IQ2_XS"},  {18, "IQ3_XXS"},
    {19, "IQ1_S"},  {21, "IQ3_S"},  {22, "IQ2_S"},   {24, "I8"},      {25, "I16"},
    {26, "I32"},    {27, "I64"},    {28, "F64"},     {29, "IQ1_M"},   {34, "TQ1_0"},
    {35, "TQ2_0"},  {40, "NVFP4"},  {133, "Q6_0"},   {137, "IQ2_K"},  {138, "IQ3_K"},
    {139, "IQ4_K"}, {140, "IQ5_K"}, {141, "IQ6_K"},  {144, "IQ4_KS"}, {145, "IQ2_KS"}};

constexpr uint32_t kRemovedTypes[] = {4, 5, 31, 32, 33, 36, 37, 38};

}  // namespace

std::optional<GgufTensorType> FindGgufTensorType(uint32_t code) {
  for (size_t i = 0; i < kNumGgufTensorTypes; ++i) {
    if (kGgufTensorLayouts[i].code == code) return static_cast<GgufTensorType>(i);
  }
  return std::nullopt;
}

std::string DescribeForeignGgufType(uint32_t code) {
  for (const ForeignType& type : kForeignTypes) {
    if (type.code == code) return fmt::format("{} ({})", type.name, code);
  }
  for (const uint32_t removed : kRemovedTypes) {
    if (removed == code) return fmt::format("{}, which was removed from the format", code);
  }
  return fmt::format("{}, which is not known", code);
}

std::string GgufTensorTypeNames() {
  std::string names;
  for (const GgufTensorLayout& layout : kGgufTensorLayouts) {
    names += names.empty() ? "" : ", ";
    names += layout.name;
  }
  return names;
}

}  // namespace pmkvq
