// The tree of a template. Internal to text/jinja. A tree owns its nodes in one list, so that a deep
// tree is freed without recursion; it never changes after parsing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/text/jinja/objects.h"
#include "pmkvq/text/jinja/value.h"

namespace pmkvq::jinja {

class Interpreter;

using FilterFunction = Value (*)(Interpreter& interpreter, const Value& value,
                                 const Arguments& arguments);
using TestFunction = bool (*)(Interpreter& interpreter, const Value& value,
                              const Arguments& arguments);

struct Expression {
  enum class Kind : uint8_t {
    kConstant,    // value
    kName,        // symbol
    kList,        // operands
    kTuple,       // operands
    kDict,        // operands: key, value, key, value, ...
    kAttribute,   // operands[0].name
    kItem,        // operands[0][operands[1]]
    kSlice,       // operands[0][operands[1] : operands[2] : operands[3]], null where left out
    kCall,        // operands[0](arguments)
    kFilter,      // operands[0] | name(arguments); operands[0] is null in a filter block
    kTest,        // operands[0] is name(arguments)
    kNot,         // operands[0]
    kNegative,    // operands[0]
    kPositive,    // operands[0]
    kAnd,         // operands[0], operands[1]
    kOr,          // operands[0], operands[1]
    kIfElse,      // operands[0] if operands[1] else operands[2], null where left out
    kConcat,      // operands joined by ~
    kArithmetic,  // operands[0] op operands[1]; op is one of + - * / \ (floor) % ^ (power)
    kCompare,     // operands[0] ops[0] operands[1] ops[1] operands[2] ...
  };
  // Comparisons, in the order of `ops`.
  enum class Comparison : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

  Kind kind;
  int line = 0;
  char op = 0;
  int symbol = -1;
  std::string name;
  Value value;
  std::vector<Expression*> operands;
  std::vector<Comparison> ops;
  FilterFunction filter = nullptr;
  TestFunction test = nullptr;
  // Of kCall, kFilter and kTest.
  std::vector<Expression*> positional;
  std::vector<std::pair<std::string, Expression*>> named;
  Expression* star = nullptr;       // *list
  Expression* star_star = nullptr;  // **dict
};

// What is assigned to: a name, an attribute of a namespace, or several of them.
struct Target {
  int line = 0;
  int symbol = -1;
  std::string attribute;      // Not empty: of the namespace that `symbol` names.
  std::vector<Target> parts;  // Not empty: unpacked.
  bool is_tuple = false;
};

struct Statement {
  enum class Kind : uint8_t {
    kText,      // text
    kPrint,     // expression
    kIf,        // branches; body: else
    kFor,       // target, expression; test; body; else_body
    kSet,       // target, expression
    kSetBlock,  // target, body; filter
    kMacro,     // symbol, parameters, body
    kCall,      // expression: a call; parameters and body: its caller
    kFilter,    // filter, body
    kWith,      // targets and expressions, body
    kScope,     // body, in a new scope
    kBreak,
    kContinue,
  };
  struct Branch {
    Expression* test;
    std::vector<Statement*> body;
  };
  struct Parameter {
    int symbol;
    Expression* otherwise;  // Null for none.
  };

  Kind kind;
  int line = 0;
  int symbol = -1;
  Value text;  // A string.
  Expression* expression = nullptr;
  Expression* test = nullptr;
  Expression* filter = nullptr;  // The outermost of a chain of filters.
  Target target;
  std::vector<Target> targets;
  std::vector<Expression*> expressions;
  std::vector<Branch> branches;
  std::vector<Parameter> parameters;
  std::vector<Statement*> body;
  std::vector<Statement*> else_body;
  // Of macros: which of the special names their bodies use.
  bool uses_caller = false;
  bool uses_varargs = false;
  bool uses_kwargs = false;
};

struct Tree {
  std::vector<std::unique_ptr<Expression>> expressions;
  std::vector<std::unique_ptr<Statement>> statements;
  std::vector<std::string> symbols;  // Names of variables; places in here stand for them.
  std::vector<Statement*> body;

  // The place of a name, or -1.
  int FindSymbol(std::string_view name) const;
};

}  // namespace pmkvq::jinja
