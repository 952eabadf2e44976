// Walks the tree of a template and writes the prompt. Internal to text/jinja. One rendering; one
// thread.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pmkvq/text/jinja/ast.h"
#include "pmkvq/text/jinja/format.h"
#include "pmkvq/text/jinja/runtime.h"

namespace pmkvq::jinja {

// Variables by symbol, and the scope around them.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<int, Value>> variables;
  std::unordered_map<int, size_t> index;  // Symbol -> place; only for many variables.
  bool is_captured = false;               // A macro may still read it.

  Value* Find(int symbol);
  void Set(int symbol, const Value& value);
  void Clear();
};

class Interpreter : public Runtime {
 public:
  // All must outlive the rendering.
  Interpreter(const Tree& tree, const Limits& limits, const std::string& source, const Date& date);
  ~Interpreter();

  // A variable of the caller. Names that the template does not use are left out.
  void SetVariable(std::string_view name, const Value& value);
  MarkedText Run();

  const Date& date() const { return date_; }
  // Calls a macro, function or method.
  Value Call(const Value& callee, const Arguments& arguments);
  Value NewNamespace(std::vector<std::pair<std::string, Value>> members);

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  // One level of recursion for as long as it lives.
  class Depth {
   public:
    explicit Depth(Interpreter& interpreter) : interpreter_(interpreter) {
      if (interpreter_.depth_ >= interpreter_.limits().max_depth) interpreter_.FailDepth();
      ++interpreter_.depth_;
    }
    ~Depth() { --interpreter_.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;

   private:
    Interpreter& interpreter_;
  };
  class ScopeHolder;
  class OutputHolder;

  [[noreturn]] void FailDepth() const;
  Flow Execute(const std::vector<Statement*>& body);
  Flow Execute(const Statement& statement);
  Flow ExecuteIf(const Statement& statement);
  Flow ExecuteFor(const Statement& statement);
  void ExecuteSet(const Statement& statement);
  void ExecuteCall(const Statement& statement);
  Flow ExecuteWith(const Statement& statement);
  // What the body writes, as a string.
  Value Capture(const std::vector<Statement*>& body);
  void Assign(const Target& target, const Value& value);
  Value NewMacro(const Statement& definition);
  Value CallMacro(const Macro& macro, const Arguments& arguments);
  void BindParameters(const Macro& macro, const Arguments& arguments);

  Value Evaluate(const Expression& expression);
  Value EvaluateName(const Expression& expression);
  Value EvaluateDict(const Expression& expression);
  Value EvaluateCall(const Expression& expression);
  Value EvaluateSlice(const Expression& expression);
  Value EvaluateConcat(const Expression& expression);
  bool EvaluateCompare(const Expression& expression);
  bool Compare(Expression::Comparison op, const Value& left, const Value& right);
  // A chain of filters; `body` is the innermost value where the template has none (a filter block).
  Value EvaluateFilter(const Expression& expression, const Value* body);
  Arguments EvaluateArguments(const Expression& expression);
  std::vector<Value> EvaluateAll(const std::vector<Expression*>& expressions);

  const Value* Lookup(int symbol);
  void Set(int symbol, const Value& value) { scope_->Set(symbol, value); }
  Scope* NewScope(Scope* parent);
  void EndScope(Scope* scope);

  const Tree& tree_;
  const Date date_;
  int depth_ = 0;
  Scope* scope_ = nullptr;
  StringBuilder* output_ = nullptr;
  std::deque<std::unique_ptr<Scope>> scopes_;
  std::vector<Scope*> free_scopes_;
  std::deque<Namespace> namespaces_;
  std::deque<Macro> macros_;
  std::vector<MemoryCharge> charges_;  // Of values that live until the end.
  int loop_symbol_;
  int caller_symbol_;
  int varargs_symbol_;
  int kwargs_symbol_;
};

}  // namespace pmkvq::jinja
