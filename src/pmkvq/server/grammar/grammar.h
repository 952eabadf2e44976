// A context-free grammar over bytes, and what may come next in a text that follows it.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <map>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pmkvq::server {

using ByteSet = std::bitset<256>;

// Rules are numbers. Made by one thread; then immutable.
class Grammar {
 public:
  struct Symbol {
    int32_t rule = -1;  // -1: `bytes`.
    ByteSet bytes;      // One byte of these.
  };
  using Sequence = std::vector<Symbol>;

  static Symbol Rule(int32_t rule) { return {rule, {}}; }
  static Symbol Bytes(const ByteSet& bytes) { return {-1, bytes}; }
  static Symbol Range(unsigned char first, unsigned char last);
  // Appends the bytes of a text, one symbol each.
  static void AppendLiteral(std::string_view text, Sequence& sequence);

  // Takes away alternatives that no text ends: those whose rules need themselves. Returns whether
  // the rule `start` has a text.
  bool DropEndless(int32_t start);

  // A new rule without alternatives.
  int32_t AddRule();
  void AddAlternative(int32_t rule, const Sequence& sequence);
  int64_t num_rules() const { return std::ssize(rules_); }
  int64_t num_symbols() const { return std::ssize(symbols_); }

 private:
  friend class GrammarStates;
  std::vector<Symbol> symbols_ = {Symbol{}};
  std::vector<bool> ends_ = {true};          // Whether a sequence ends at this position.
  std::vector<std::vector<int32_t>> rules_;  // Positions in symbols_, of each alternative.
};

// The states of reading a text: an automaton that is made where it is used. A state is a number.
// Not for several threads.
class GrammarStates {
 public:
  static constexpr int32_t kNone = -1;  // No text of the grammar begins so.

  // `grammar` must outlive the object. The text is one of rule `start`.
  GrammarStates(const Grammar* grammar, int32_t start);

  // kNone where the rule has no text.
  int32_t start() const { return start_; }
  int32_t Next(int32_t state, unsigned char byte);
  // The text may end here.
  bool Ends(int32_t state) const { return states_[static_cast<size_t>(state)].ends; }
  // Something may follow.
  bool GoesOn(int32_t state) const { return !states_[static_cast<size_t>(state)].stacks.empty(); }
  int64_t num_states() const { return std::ssize(states_); }
  // An ambiguous grammar that refers to itself may have very many stacks at once. Next does so much
  // work until this is called again, and says kNone for what it has not found out by then.
  void AllowWork(int64_t num_items) { work_left_ = num_items; }
  // Forgets all states but this one, which gets the number that is returned.
  int32_t Compact(int32_t state);

 private:
  using Stacks = std::vector<int32_t>;  // Of tops, ascending.
  struct Item {                         // Stack element: the rest of a sequence, from `position`.
    int32_t position = 0;
    int32_t below = -1;  // -1: nothing.
    bool operator<(const Item& o) const {
      return std::pair(position, below) < std::pair(o.position, o.below);
    }
  };
  struct State {
    Stacks stacks;
    bool ends = false;
    std::array<int32_t, 256> next;
  };

  int32_t ItemNumber(Item item);
  void Close(Item item, Stacks& stacks, bool& ends);
  int32_t StateNumber(Stacks stacks, bool ends);

  const Grammar* grammar_;
  std::vector<Item> items_;
  std::map<Item, int32_t> item_numbers_;
  std::vector<State> states_;
  std::map<std::pair<Stacks, bool>, int32_t> state_numbers_;
  std::vector<uint32_t> seen_;  // By item: the Next, or the start, that met it last.
  uint32_t turn_ = 0;
  int64_t work_left_ = int64_t{1} << 22;
  int32_t start_ = 0;
};

}  // namespace pmkvq::server
