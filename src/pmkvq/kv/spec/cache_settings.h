// The settings of a packed cache: one struct, and one table of its fields. From the table come the
// options of commands, the keys of a packed SPEC, what a plan records, and what identifies a run.
// A new setting is a member here, a row in cache_settings.cc, and its use.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/spec/spec.h"

namespace pmkvq {

// What pm-kvq takes its widths and budgets from; these exclude each other.
struct PlanWidths {};  // The plan's, or --kv-budget.
struct BudgetWidth {   // Every block has the budget of that width at --max-len.
  int bits = 16;
};
struct BlockWidths {  // Planned widths of every block; 0: not given yet.
  int k = 0;
  int v = 0;
};
using WidthChoice = std::variant<PlanWidths, BudgetWidth, BlockWidths>;

struct CacheSettings {
  PolicyKind policy = PolicyKind::kLayerBudget;
  int64_t sink_tokens = -1;      // -1: the plan's, or 1
  int64_t window_tokens = -1;    // -1: the plan's, or 128
  int init_kv_bits = 16;         // pm-kvq: width at which pages close at first
  DType kv_dtype = DType::kF16;  // Of what is not quantised, and of metadata.
  bool reference_accounting = false;
  AttentionMode attention = AttentionMode::kAccurate;  // Of packed caches.

  bool use_scales = true;  // The plan's key scales.
  WidthChoice widths = {};
  QuantAxis k_axis = QuantAxis::kToken;
  bool rotate_keys = false;
  bool rotate_values = false;
  bool static_widths = false;  // Pages close at once at the planned widths.
  // Of latent attention: least width of the rope part. -1: the plan's, or 8.
  int rope_floor_bits = -1;
};

struct CacheField {
  enum class Kind : uint8_t {
    kInteger,  // A whole number.
    kWidth,    // A number out of `choices`.
    kChoice,   // A word out of `choices`.
    kFlag,     // On where it is named; "true" or "false" as text.
  };
  // Packed methods whose SPEC has the field as a key.
  enum class KeyOf : uint8_t { kNone, kAll, kQuantised, kProgressive };
  // Among the options that identify a run.
  enum class Record : uint8_t { kNever, kAlways, kUnlessDefault };

  Kind kind = Kind::kInteger;
  std::vector<std::string> choices = {};

  KeyOf key_of = KeyOf::kNone;
  const char* key = "";          // Of the SPEC; kFlag: a word.
  const char* key_default = "";  // As help shows it.
  const char* key_help = "";
  int64_t least = 0;  // kInteger: in a SPEC.
  int64_t most = 0;
  int64_t multiple_of = 1;  // kInteger: in a SPEC and in a plan.

  const char* option = "";  // Of a command, "--policy"; "": none.
  const char* option_help = "";
  Record record = Record::kNever;

  const char* plan_key = "";  // In a plan's JSON; "": not recorded.
  int64_t most_in_plan = 0;   // kInteger

  // The value as an option would give it; "default" for an integer that is not given. Null in rows
  // of the SPEC alone.
  std::string (*text)(const CacheSettings& settings) = nullptr;
  // Takes a value that the kind, the choices and the range allow.
  void (*set)(CacheSettings& settings, const std::string& text) = nullptr;
  // The value as run.json has it, where that is another text.
  std::string (*record_text)(const CacheSettings& settings) = nullptr;
};

// In the order in which help and run.json have them.
std::span<const CacheField> CacheFields();

// The declaration of the field's key.
SpecKey KeyOfField(const CacheField& field);

// All fields, or those that are options of commands as well.
enum class FieldsToApply : uint8_t { kAll, kOptions };
// Sets the fields that the SPEC gives. After MethodSpec::Check with the keys of its method. Throws
// InvalidInput naming --kv for values that are no multiple of what they should be.
void ApplyFields(const MethodSpec& spec, FieldsToApply fields, CacheSettings& settings);

}  // namespace pmkvq
