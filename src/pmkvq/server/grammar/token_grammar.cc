#include "pmkvq/server/grammar/token_grammar.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace pmkvq::server {
namespace {

constexpr int64_t kMostStates = 20000;  // 1 KiB each.
// Stacks looked at for one token: some 0.2 s. Grammars of schemas take a thousandth of it.
constexpr int64_t kMostWork = int64_t{1} << 21;
constexpr size_t kMostMasks = 256;  // A bit per token each.
constexpr size_t kLongestToken = 256;

}  // namespace

TokenTexts::TokenTexts(const Tokenizer& tokenizer, int64_t vocab_size) : vocab_size_(vocab_size) {
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (!tokenizer.IsValid(id) || tokenizer.IsSpecial(id)) continue;
    std::string bytes = tokenizer.TokenBytes(id);
    if (!bytes.empty() && bytes.size() <= kLongestToken) tokens_.push_back({bytes, id, 0});
  }
  std::sort(tokens_.begin(), tokens_.end(),
            [](const Token& a, const Token& b) { return a.bytes < b.bytes; });
  for (size_t i = 1; i < tokens_.size(); ++i) {
    const std::string& a = tokens_[i - 1].bytes;
    const std::string& b = tokens_[i].bytes;
    const auto end = std::mismatch(a.begin(), a.begin() + std::ssize(a), b.begin(), b.end()).first;
    tokens_[i].shared = static_cast<size_t>(end - a.begin());
  }
  places_.assign(static_cast<size_t>(vocab_size), -1);
  for (size_t i = 0; i < tokens_.size(); ++i) {
    places_[static_cast<size_t>(tokens_[i].id)] = static_cast<int32_t>(i);
  }
}

TokenGrammar::TokenGrammar(std::shared_ptr<const Grammar> grammar, int32_t start,
                           std::shared_ptr<const TokenTexts> texts, Options options)
    : grammar_(std::move(grammar)),
      start_(start),
      texts_(std::move(texts)),
      options_(std::move(options)) {}

class TokenGrammar::Mask : public TokenMask {
 public:
  explicit Mask(const TokenGrammar* owner)
      : owner_(owner),
        states_(owner->grammar_.get(), owner->start_),
        state_(states_.start()),
        is_free_(!owner->options_.starts_behind.empty() && owner->options_.opening_id < 0),
        may_open_(owner->options_.opening_id >= 0) {}

  std::span<const int32_t> Forbidden() override {
    forbidden_.clear();
    if (is_free_) return forbidden_;
    states_.AllowWork(kMostWork);
    const std::vector<bool>& allowed = Allowed();
    const auto size = static_cast<int32_t>(owner_->texts_->vocab_size());
    for (int32_t id = 0; id < size; ++id) {
      const bool opens = may_open_ && id == owner_->options_.opening_id;
      if (!allowed[static_cast<size_t>(id)] && !opens) forbidden_.push_back(id);
    }
    return forbidden_;
  }

  void Accept(int32_t token) override {
    const bool opens = std::exchange(may_open_, false) && token == owner_->options_.opening_id;
    if (opens) is_free_ = true;
    if (opens) return;
    const std::string_view bytes = owner_->texts_->BytesOf(token);
    is_free_ ? TakeFree(bytes) : Take(bytes);
  }

 private:
  void Take(std::string_view bytes) {
    for (const char c : bytes) {
      const int32_t next = states_.Next(state_, static_cast<unsigned char>(c));
      if (next == GrammarStates::kNone) return;  // Only where no token was allowed.
      state_ = next;
    }
    if (states_.num_states() < kMostStates) return;
    state_ = states_.Compact(state_);
    masks_.clear();
  }
  void TakeFree(std::string_view bytes) {
    const std::string& end = owner_->options_.starts_behind;
    free_text_ += bytes;
    const size_t at = free_text_.find(end);
    if (at == std::string::npos) {
      if (free_text_.size() > end.size()) free_text_.erase(0, free_text_.size() - end.size());
      return;
    }
    is_free_ = false;
    Take(std::string_view(free_text_).substr(at + end.size()));
  }

  const std::vector<bool>& Allowed() {
    const auto found = masks_.find(state_);
    if (found != masks_.end()) return found->second;
    if (masks_.size() >= kMostMasks) masks_.clear();
    std::vector<bool> allowed(static_cast<size_t>(owner_->texts_->vocab_size()));
    // States behind each of the leading bytes of a token, up to the first that leads nowhere.
    std::vector<int32_t> path = {state_};
    for (const TokenTexts::Token& token : owner_->texts_->tokens()) {
      const size_t known = std::min(token.shared, path.size() - 1);
      // Within the bytes that lead nowhere already.
      if (path[known] == GrammarStates::kNone) {
        path.resize(known + 1);
        continue;
      }
      path.resize(known + 1);
      for (size_t i = known; i < token.bytes.size() && path.back() != GrammarStates::kNone; ++i) {
        path.push_back(states_.Next(path.back(), static_cast<unsigned char>(token.bytes[i])));
      }
      if (path.back() != GrammarStates::kNone) allowed[static_cast<size_t>(token.id)] = true;
    }
    const bool ends = states_.Ends(state_);
    for (const int32_t id : owner_->options_.end_ids) {
      if (id >= 0 && static_cast<size_t>(id) < allowed.size()) {
        allowed[static_cast<size_t>(id)] = ends;
      }
    }
    return masks_.emplace(state_, std::move(allowed)).first->second;
  }

  const TokenGrammar* owner_;
  GrammarStates states_;
  int32_t state_;
  bool is_free_;   // In front of the grammar's text.
  bool may_open_;  // The next token is the first one.
  std::string free_text_;
  std::unordered_map<int32_t, std::vector<bool>> masks_;  // By state.
  std::vector<int32_t> forbidden_;
};

std::unique_ptr<TokenMask> TokenGrammar::Start() const { return std::make_unique<Mask>(this); }

}  // namespace pmkvq::server
