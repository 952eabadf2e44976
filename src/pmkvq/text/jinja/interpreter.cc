#include "pmkvq/text/jinja/interpreter.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/text/jinja/library.h"
#include "pmkvq/text/jinja/text_of.h"

namespace pmkvq::jinja {

// A new scope inside of `parent` for as long as it lives.
class Interpreter::ScopeHolder {
 public:
  ScopeHolder(Interpreter& interpreter, Scope* parent)
      : interpreter_(interpreter), outer_(interpreter.scope_) {
    interpreter_.scope_ = interpreter_.NewScope(parent);
  }
  ~ScopeHolder() {
    interpreter_.EndScope(interpreter_.scope_);
    interpreter_.scope_ = outer_;
  }
  ScopeHolder(const ScopeHolder&) = delete;
  ScopeHolder& operator=(const ScopeHolder&) = delete;

 private:
  Interpreter& interpreter_;
  Scope* outer_;
};

// Sends the output to `builder` for as long as it lives.
class Interpreter::OutputHolder {
 public:
  OutputHolder(Interpreter& interpreter, StringBuilder* builder)
      : interpreter_(interpreter), outer_(std::exchange(interpreter.output_, builder)) {}
  ~OutputHolder() { interpreter_.output_ = outer_; }
  OutputHolder(const OutputHolder&) = delete;
  OutputHolder& operator=(const OutputHolder&) = delete;

 private:
  Interpreter& interpreter_;
  StringBuilder* outer_;
};

Value* Scope::Find(int symbol) {
  if (!index.empty()) {
    const auto found = index.find(symbol);
    return found == index.end() ? nullptr : &variables[found->second].second;
  }
  for (auto& [name, value] : variables) {
    if (name == symbol) return &value;
  }
  return nullptr;
}

void Scope::Set(int symbol, const Value& value) {
  constexpr size_t kIndexFrom = 16;
  if (Value* present = Find(symbol)) {
    *present = value;
    return;
  }
  variables.emplace_back(symbol, value);
  if (variables.size() < kIndexFrom) return;
  if (index.empty()) {
    for (size_t i = 0; i < variables.size(); ++i) index.emplace(variables[i].first, i);
  } else {
    index.emplace(symbol, variables.size() - 1);
  }
}

void Scope::Clear() {
  variables.clear();
  index.clear();
}

Interpreter::Interpreter(const Tree& tree, const Limits& limits, const std::string& source,
                         const Date& date)
    : Runtime(limits, source),
      tree_(tree),
      date_(date),
      loop_symbol_(tree.FindSymbol("loop")),
      caller_symbol_(tree.FindSymbol("caller")),
      varargs_symbol_(tree.FindSymbol("varargs")),
      kwargs_symbol_(tree.FindSymbol("kwargs")) {
  scope_ = NewScope(nullptr);
  scope_->is_captured = true;
}

Interpreter::~Interpreter() = default;

void Interpreter::FailDepth() const {
  Fail(fmt::format("the template is nested more than {} levels deep", limits().max_depth));
}

void Interpreter::SetVariable(std::string_view name, const Value& value) {
  const int symbol = tree_.FindSymbol(name);
  if (symbol >= 0) Set(symbol, value);
}

MarkedText Interpreter::Run() {
  StringBuilder output(*this, limits().max_output_bytes);
  const OutputHolder holder(*this, &output);
  Execute(tree_.body);
  return output.TakeText();
}

Scope* Interpreter::NewScope(Scope* parent) {
  Scope* scope = nullptr;
  if (free_scopes_.empty()) {
    charges_.push_back(Charge(sizeof(Scope) + 2 * sizeof(void*)));
    scopes_.push_back(std::make_unique<Scope>());
    scope = scopes_.back().get();
  } else {
    scope = free_scopes_.back();
    free_scopes_.pop_back();
  }
  scope->parent = parent;
  return scope;
}

void Interpreter::EndScope(Scope* scope) {
  if (scope->is_captured) return;
  scope->Clear();
  free_scopes_.push_back(scope);
}

const Value* Interpreter::Lookup(int symbol) {
  size_t num_scopes = 0;
  const Value* found = nullptr;
  for (Scope* scope = scope_; scope != nullptr && found == nullptr; scope = scope->parent) {
    found = scope->Find(symbol);
    ++num_scopes;
  }
  StepItems(num_scopes);
  return found;
}

Value Interpreter::NewNamespace(std::vector<std::pair<std::string, Value>> members) {
  charges_.push_back(Charge(sizeof(Namespace) + 64 * (members.size() + 1)));
  namespaces_.push_back({std::move(members)});
  return {Kind::kNamespace,
          std::shared_ptr<const void>(std::shared_ptr<void>(), &namespaces_.back())};
}

Value Interpreter::NewMacro(const Statement& definition) {
  // With the scope that it keeps.
  charges_.push_back(Charge(sizeof(Macro) + 512));
  macros_.push_back({&definition, scope_});
  for (Scope* scope = scope_; scope != nullptr && !scope->is_captured; scope = scope->parent) {
    scope->is_captured = true;
  }
  return {Kind::kMacro, std::shared_ptr<const void>(std::shared_ptr<void>(), &macros_.back())};
}

Interpreter::Flow Interpreter::Execute(const std::vector<Statement*>& body) {
  for (const Statement* statement : body) {
    const Flow flow = Execute(*statement);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::Execute(const Statement& statement) {
  const Depth depth(*this);
  Step();
  set_line(statement.line);
  switch (statement.kind) {
    case Statement::Kind::kText:
      output_->Append(statement.text.string());
      return Flow::kNext;
    case Statement::Kind::kPrint:
      AppendText(*this, Evaluate(*statement.expression), output_);
      return Flow::kNext;
    case Statement::Kind::kIf:
      return ExecuteIf(statement);
    case Statement::Kind::kFor:
      return ExecuteFor(statement);
    case Statement::Kind::kSet:
    case Statement::Kind::kSetBlock:
      ExecuteSet(statement);
      return Flow::kNext;
    case Statement::Kind::kMacro:
      Set(statement.symbol, NewMacro(statement));
      return Flow::kNext;
    case Statement::Kind::kCall:
      ExecuteCall(statement);
      return Flow::kNext;
    case Statement::Kind::kFilter: {
      const Value body = Capture(statement.body);
      AppendText(*this, EvaluateFilter(*statement.filter, &body), output_);
      return Flow::kNext;
    }
    case Statement::Kind::kWith:
      return ExecuteWith(statement);
    case Statement::Kind::kScope: {
      const ScopeHolder scope(*this, scope_);
      return Execute(statement.body);
    }
    case Statement::Kind::kBreak:
      return Flow::kBreak;
    case Statement::Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::ExecuteIf(const Statement& statement) {
  for (const Statement::Branch& branch : statement.branches) {
    if (IsTrue(Evaluate(*branch.test))) return Execute(branch.body);
  }
  return Execute(statement.else_body);
}

Interpreter::Flow Interpreter::ExecuteFor(const Statement& statement) {
  auto loop = std::make_shared<Loop>();
  loop->charge = Charge(sizeof(Loop) + 64);
  loop->items = Walk(Evaluate(*statement.expression));
  loop->depth = loop->items->depth + 1;
  loop->depth0 = 0;
  Scope* const outer = scope_;
  if (statement.test != nullptr) {
    loop->filter = [this, &statement, outer](const Value& item) {
      const ScopeHolder scope(*this, outer);
      Assign(statement.target, item);
      return IsTrue(Evaluate(*statement.test));
    };
  }
  // The loop may outlive this call in a variable, but not its filter.
  struct LoopEnd {
    Loop& loop;
    ~LoopEnd() {
      loop.last_changed.reset();  // It may hold the loop itself.
      if (loop.filter) {
        loop.filter = nullptr;
        loop.num_seen = loop.items->items.size();
      }
    }
  } loop_end{*loop};
  if (loop->depth > limits().max_value_depth) {
    Fail(fmt::format("a list is nested more than {} levels deep", limits().max_value_depth));
  }
  const Value loop_value(Kind::kLoop, loop);
  // As with Jinja, a turn that was left by break or continue does not count for "else".
  bool has_whole_turn = false;
  while (loop->Advance()) {
    Step();
    const ScopeHolder scope(*this, outer);
    if (loop_symbol_ >= 0) Set(loop_symbol_, loop_value);
    Assign(statement.target, loop->current);
    const Flow flow = Execute(statement.body);
    if (flow == Flow::kBreak) break;
    has_whole_turn = has_whole_turn || flow == Flow::kNext;
  }
  if (!has_whole_turn) {
    const ScopeHolder scope(*this, outer);
    return Execute(statement.else_body);
  }
  return Flow::kNext;
}

void Interpreter::ExecuteSet(const Statement& statement) {
  if (statement.kind == Statement::Kind::kSet) {
    Assign(statement.target, Evaluate(*statement.expression));
    return;
  }
  const Value body = Capture(statement.body);
  Assign(statement.target,
         statement.filter == nullptr ? body : EvaluateFilter(*statement.filter, &body));
}

Interpreter::Flow Interpreter::ExecuteWith(const Statement& statement) {
  const std::vector<Value> values = EvaluateAll(statement.expressions);
  const ScopeHolder scope(*this, scope_);
  for (size_t i = 0; i < values.size(); ++i) Assign(statement.targets[i], values[i]);
  return Execute(statement.body);
}

void Interpreter::ExecuteCall(const Statement& statement) {
  const Expression& call = *statement.expression;
  const Value callee = Evaluate(*call.operands[0]);
  Arguments arguments = EvaluateArguments(call);
  arguments.named.emplace_back("caller", NewMacro(statement));
  set_line(call.line);
  AppendText(*this, Call(callee, arguments), output_);
}

Value Interpreter::Capture(const std::vector<Statement*>& body) {
  StringBuilder builder(*this);
  const OutputHolder output(*this, &builder);
  const ScopeHolder scope(*this, scope_);
  Execute(body);
  return builder.Take();
}

void Interpreter::Assign(const Target& target, const Value& value) {
  if (target.is_tuple) {
    const std::shared_ptr<const Sequence> items = Walk(value);
    if (items->items.size() != target.parts.size()) {
      Fail(fmt::format("found {} values to unpack, expected {}", items->items.size(),
                       target.parts.size()));
    }
    for (size_t i = 0; i < target.parts.size(); ++i) Assign(target.parts[i], items->items[i]);
    return;
  }
  if (target.attribute.empty()) {
    Set(target.symbol, value);
    return;
  }
  const Value* space = Lookup(target.symbol);
  if (space == nullptr || !space->Is(Kind::kNamespace)) {
    Fail(fmt::format("found {}.{} to set, expected \"{}\" to be a namespace()",
                     tree_.symbols[static_cast<size_t>(target.symbol)], target.attribute,
                     tree_.symbols[static_cast<size_t>(target.symbol)]));
  }
  Namespace& members = space->name_space();
  StepItems(members.members.size());
  if (Value* present = members.Find(target.attribute)) {
    *present = value;
  } else {
    members.members.emplace_back(target.attribute, value);
  }
}

Value Interpreter::Call(const Value& callee, const Arguments& arguments) {
  const Depth depth(*this);
  switch (callee.kind()) {
    case Kind::kUndefined:
      FailUndefined(callee);
    case Kind::kMacro:
      return CallMacro(callee.macro(), arguments);
    case Kind::kFunction:
      return callee.function().call(*this, arguments);
    case Kind::kMethod:
      return CallMethod(*this, callee.method(), arguments);
    case Kind::kLoop:
      Fail("the loop must have the 'recursive' marker to be called recursively");
    default:
      Fail(fmt::format("'{}' object is not callable", TypeName(callee)));
  }
}

void Interpreter::BindParameters(const Macro& macro, const Arguments& arguments) {
  const Statement& definition = *macro.definition;
  const auto& parameters = definition.parameters;
  const auto name_of = [&](int symbol) {
    return std::string_view(tree_.symbols[static_cast<size_t>(symbol)]);
  };
  const std::string_view macro_name =
      definition.kind == Statement::Kind::kMacro ? name_of(definition.symbol) : "caller";
  std::vector<bool> is_used(arguments.named.size(), false);
  StepItems(parameters.size() * (arguments.named.size() + 1));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Value* given = i < arguments.positional.size() ? &arguments.positional[i] : nullptr;
    for (size_t k = 0; k < arguments.named.size() && given == nullptr; ++k) {
      if (arguments.named[k].first != name_of(parameters[i].symbol)) continue;
      given = &arguments.named[k].second;
      is_used[k] = true;
    }
    if (given != nullptr) {
      Set(parameters[i].symbol, *given);
    } else if (parameters[i].otherwise != nullptr) {
      Set(parameters[i].symbol, Evaluate(*parameters[i].otherwise));
    } else {
      Set(parameters[i].symbol,
          Undefined(fmt::format("parameter '{}' was not provided", name_of(parameters[i].symbol))));
    }
  }
  Value caller = Undefined("No caller defined");
  Dict rest;
  for (size_t k = 0; k < arguments.named.size(); ++k) {
    const auto& [name, value] = arguments.named[k];
    if (is_used[k]) continue;
    if (name == "caller" && definition.uses_caller) {
      caller = value;
    } else if (definition.uses_kwargs) {
      rest.Set(Text(name), value);
    } else {
      Fail(fmt::format("macro '{}' takes no keyword argument '{}'", macro_name, name));
    }
  }
  const bool has_caller_parameter =
      std::any_of(parameters.begin(), parameters.end(),
                  [&](const auto& parameter) { return parameter.symbol == caller_symbol_; });
  if (definition.uses_caller && !has_caller_parameter) Set(caller_symbol_, caller);
  if (definition.uses_kwargs) Set(kwargs_symbol_, FromDict(std::move(rest)));
  if (definition.uses_varargs) {
    std::vector<Value> more;
    for (size_t i = parameters.size(); i < arguments.positional.size(); ++i) {
      more.push_back(arguments.positional[i]);
    }
    Set(varargs_symbol_, Items(Kind::kTuple, std::move(more)));
  } else if (arguments.positional.size() > parameters.size()) {
    Fail(fmt::format("macro '{}' takes not more than {} argument(s)", macro_name,
                     parameters.size()));
  }
}

Value Interpreter::CallMacro(const Macro& macro, const Arguments& arguments) {
  const Depth depth(*this);
  StringBuilder builder(*this);
  const OutputHolder output(*this, &builder);
  const ScopeHolder scope(*this, macro.scope);
  BindParameters(macro, arguments);
  Execute(macro.definition->body);
  return builder.Take();
}

}  // namespace pmkvq::jinja
