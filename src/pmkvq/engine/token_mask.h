// What a request may draw, decided from what it has drawn: grammars of outputs.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace pmkvq {

// Of one request while it runs. Called on the engine's thread only.
class TokenMask {
 public:
  virtual ~TokenMask() = default;
  // Ids in [0, V) that are not drawn next; valid until the next call. All others may be. Called
  // once per token, between the model's Forward and the draw: its time is added to each step.
  virtual std::span<const int32_t> Forbidden() = 0;
  // This token was drawn, or taken from a replay.
  virtual void Accept(int32_t token) = 0;
};

// Immutable; the samples of a request share it. Must outlive its masks.
class OutputGrammar {
 public:
  virtual ~OutputGrammar() = default;
  virtual std::unique_ptr<TokenMask> Start() const = 0;
};

}  // namespace pmkvq
