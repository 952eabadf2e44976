#include "pmkvq/text/regex.h"

#include <fmt/format.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <new>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

struct Deleter {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, Deleter>;

template <typename T>
Owned<T> Own(T* pointer) {
  if (pointer == nullptr) throw std::bad_alloc();
  return Owned<T>(pointer);
}

// Used only for a match that does not fit the 32 KiB of machine stack that PCRE2 takes by default.
constexpr size_t kJitStackStartBytes = size_t{64} << 10;
constexpr size_t kJitStackMaxBytes = size_t{64} << 20;
// For the interpreter, where no machine code can be made: in KiB.
constexpr uint32_t kHeapLimitKib = 256u << 10;

std::string ErrorText(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

// Escapes of letters that mean the same in Oniguruma and in PCRE2.
constexpr std::string_view kSharedEscapes = "adDefnprtxAPzZ";

std::string Translate(std::string_view pattern, const std::string& where) {
  std::string result;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      result += pattern[i];
      continue;
    }
    const char escape = pattern[++i];
    const bool is_letter = (escape >= 'a' && escape <= 'z') || (escape >= 'A' && escape <= 'Z');
    if (escape == 's') {
      result += "\\p{White_Space}";  // PCRE2's \s also has U+180E.
    } else if (escape == 'S') {
      result += "\\P{White_Space}";
    } else if (!is_letter || kSharedEscapes.find(escape) != std::string_view::npos) {
      result += {'\\', escape};
    } else {
      throw Unsupported(where, fmt::format("regular expression escape \\{}", escape));
    }
  }
  return result;
}

}  // namespace

struct Regex::Code {
  std::string where;
  Owned<pcre2_code> code;
};

Regex::Regex(std::string_view pattern, Syntax syntax, const std::string& where)
    : code_(std::make_unique<Code>()) {
  const bool literal = syntax == Syntax::kLiteral;
  const std::string source = literal ? std::string(pattern) : Translate(pattern, where);
  const uint32_t options = literal
                               ? PCRE2_UTF | PCRE2_LITERAL
                               : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  const auto context = Own(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                                   options, &error, &offset, context.get());
  if (code == nullptr) {
    throw InvalidInput(where, fmt::format("regular expression \"{}\": {}, at byte {}", source,
                                          ErrorText(error), offset));
  }
  code_->where = where;
  code_->code.reset(code);
  // Failure leaves the interpreter, which gives the same matches.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

Regex::~Regex() = default;
Regex::Regex(Regex&& other) noexcept = default;
Regex& Regex::operator=(Regex&& other) noexcept = default;

namespace {

// One pass over one text, with the memory that PCRE2 needs per thread.
class Matcher {
 public:
  Matcher(const pcre2_code* code, std::string_view text)
      : code_(code),
        text_(text),
        context_(Own(pcre2_match_context_create(nullptr))),
        data_(Own(pcre2_match_data_create_from_pattern(code, nullptr))) {
    pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
  }

  // Next match from `start`; false when there is none. `*error` is 0 or PCRE2's code.
  bool Next(size_t start, Span* match, int* error) {
    *error = 0;
    int result = Match(start);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT && stack_ == nullptr) {
      stack_ = Own(pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr));
      pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
      result = Match(start);
    }
    if (result < 0) {
      if (result != PCRE2_ERROR_NOMATCH) *error = result;
      return false;
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data_.get());
    *match = {bounds[0], bounds[1]};
    return true;
  }

 private:
  int Match(size_t start) {
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), start,
                       PCRE2_NO_UTF_CHECK, data_.get(), context_.get());
  }

  const pcre2_code* code_;
  std::string_view text_;
  Owned<pcre2_jit_stack> stack_;
  Owned<pcre2_match_context> context_;
  Owned<pcre2_match_data> data_;
};

}  // namespace

std::vector<Span> Regex::FindAll(std::string_view text) const {
  std::vector<Span> matches;
  if (text.empty()) return matches;
  Matcher matcher(code_->code.get(), text);
  size_t start = 0;
  Span match{};
  int error = 0;
  while (start <= text.size() && matcher.Next(start, &match, &error)) {
    CancelPoint();
    const bool repeats_empty =
        match.begin == match.end && !matches.empty() && matches.back().end == match.end;
    if (!repeats_empty) {
      matches.push_back(match);
      start = match.end;
      continue;
    }
    size_t length = 1;
    if (start < text.size()) DecodeUtf8(text, start, &length);
    start += length;
  }
  if (error != 0) {
    throw InvalidInput(code_->where, fmt::format("matching a text of {} bytes, at byte {}: {}",
                                                 text.size(), start, ErrorText(error)));
  }
  return matches;
}

}  // namespace pmkvq
