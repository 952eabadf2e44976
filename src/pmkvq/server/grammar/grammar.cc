#include "pmkvq/server/grammar/grammar.h"

#include <algorithm>

namespace pmkvq::server {
namespace {

constexpr int32_t kNotComputed = -2;

}  // namespace

Grammar::Symbol Grammar::Range(unsigned char first, unsigned char last) {
  Symbol symbol;
  for (int byte = first; byte <= last; ++byte) symbol.bytes.set(static_cast<size_t>(byte));
  return symbol;
}

void Grammar::AppendLiteral(std::string_view text, Sequence& sequence) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    sequence.push_back(Range(byte, byte));
  }
}

int32_t Grammar::AddRule() {
  rules_.emplace_back();
  return static_cast<int32_t>(rules_.size()) - 1;
}

void Grammar::AddAlternative(int32_t rule, const Sequence& sequence) {
  // Position 0 is the end of an empty sequence.
  rules_[static_cast<size_t>(rule)].push_back(
      sequence.empty() ? 0 : static_cast<int32_t>(symbols_.size()));
  if (sequence.empty()) return;
  for (const Symbol& symbol : sequence) {
    symbols_.push_back(symbol);
    ends_.push_back(false);
  }
  symbols_.emplace_back();
  ends_.push_back(true);
}

bool Grammar::DropEndless(int32_t start) {
  std::vector<bool> has_text(rules_.size());
  const auto ends_sometime = [&](int32_t position) {
    for (auto i = static_cast<size_t>(position); !ends_[i]; ++i) {
      const Symbol& symbol = symbols_[i];
      if (symbol.rule < 0 ? symbol.bytes.none() : !has_text[static_cast<size_t>(symbol.rule)]) {
        return false;
      }
    }
    return true;
  };
  for (bool changes = true; changes;) {
    changes = false;
    for (size_t rule = 0; rule < rules_.size(); ++rule) {
      if (has_text[rule]) continue;
      has_text[rule] = std::any_of(rules_[rule].begin(), rules_[rule].end(), ends_sometime);
      changes |= has_text[rule];
    }
  }
  for (std::vector<int32_t>& alternatives : rules_) {
    std::erase_if(alternatives, [&](int32_t position) { return !ends_sometime(position); });
  }
  return has_text[static_cast<size_t>(start)];
}

GrammarStates::GrammarStates(const Grammar* grammar, int32_t start) : grammar_(grammar) {
  Stacks stacks;
  bool ends = false;
  ++turn_;
  for (const int32_t position : grammar_->rules_[static_cast<size_t>(start)]) {
    Close({position, -1}, stacks, ends);
  }
  start_ = StateNumber(std::move(stacks), ends);
}

int32_t GrammarStates::ItemNumber(Item item) {
  const auto [found, is_new] = item_numbers_.try_emplace(item, static_cast<int32_t>(items_.size()));
  if (is_new) items_.push_back(item);
  return found->second;
}

// Adds what `item` begins with, where it begins with bytes, and what rules lead to.
void GrammarStates::Close(Item item, Stacks& stacks, bool& ends) {
  std::vector<Item> open = {item};
  while (!open.empty() && work_left_ > 0) {
    --work_left_;
    Item top = open.back();
    open.pop_back();
    while (grammar_->ends_[static_cast<size_t>(top.position)] && top.below >= 0) {
      top = items_[static_cast<size_t>(top.below)];
    }
    if (grammar_->ends_[static_cast<size_t>(top.position)]) {
      ends = true;
      continue;
    }
    const int32_t number = ItemNumber(top);
    if (seen_.size() <= static_cast<size_t>(number)) seen_.resize(items_.size());
    if (seen_[static_cast<size_t>(number)] == turn_) continue;
    seen_[static_cast<size_t>(number)] = turn_;
    const Grammar::Symbol& symbol = grammar_->symbols_[static_cast<size_t>(top.position)];
    if (symbol.rule < 0) {
      stacks.push_back(number);
      continue;
    }
    // A rule at the end of a sequence takes its place, so that lists do not deepen the stack.
    const bool is_last = grammar_->ends_[static_cast<size_t>(top.position) + 1];
    const int32_t below = is_last ? top.below : ItemNumber({top.position + 1, top.below});
    for (const int32_t position : grammar_->rules_[static_cast<size_t>(symbol.rule)]) {
      open.push_back({position, below});
    }
  }
}

int32_t GrammarStates::StateNumber(Stacks stacks, bool ends) {
  if (stacks.empty() && !ends) return kNone;
  std::sort(stacks.begin(), stacks.end());
  stacks.erase(std::unique(stacks.begin(), stacks.end()), stacks.end());
  const auto [found, is_new] =
      state_numbers_.try_emplace(std::pair(stacks, ends), static_cast<int32_t>(states_.size()));
  if (is_new) {
    State state;
    state.stacks = std::move(stacks);
    state.ends = ends;
    state.next.fill(kNotComputed);
    states_.push_back(std::move(state));
  }
  return found->second;
}

int32_t GrammarStates::Next(int32_t state, unsigned char byte) {
  const auto index = static_cast<size_t>(state);
  if (const int32_t known = states_[index].next[byte]; known != kNotComputed) return known;
  Stacks stacks;
  bool ends = false;
  ++turn_;
  for (const int32_t number : states_[index].stacks) {
    --work_left_;
    const Item item = items_[static_cast<size_t>(number)];
    if (!grammar_->symbols_[static_cast<size_t>(item.position)].bytes[byte]) continue;
    Close({item.position + 1, item.below}, stacks, ends);
  }
  if (work_left_ <= 0) return kNone;  // Not known, so not kept.
  const int32_t next = StateNumber(std::move(stacks), ends);
  states_[index].next[byte] = next;
  return next;
}

int32_t GrammarStates::Compact(int32_t state) {
  State kept = std::move(states_[static_cast<size_t>(state)]);
  const std::vector<Item> old_items = std::exchange(items_, {});
  item_numbers_.clear();
  seen_.clear();
  states_.clear();
  state_numbers_.clear();
  // Below an item are earlier ones only.
  std::vector<int32_t> renumbered(old_items.size(), -1);
  std::vector<bool> is_used(old_items.size());
  for (const int32_t number : kept.stacks) is_used[static_cast<size_t>(number)] = true;
  for (size_t i = old_items.size(); i-- > 0;) {
    if (is_used[i] && old_items[i].below >= 0) {
      is_used[static_cast<size_t>(old_items[i].below)] = true;
    }
  }
  for (size_t i = 0; i < old_items.size(); ++i) {
    if (!is_used[i]) continue;
    const int32_t below = old_items[i].below;
    renumbered[i] = ItemNumber(
        {old_items[i].position, below < 0 ? -1 : renumbered[static_cast<size_t>(below)]});
  }
  for (int32_t& number : kept.stacks) number = renumbered[static_cast<size_t>(number)];
  return StateNumber(std::move(kept.stacks), kept.ends);
}

}  // namespace pmkvq::server
