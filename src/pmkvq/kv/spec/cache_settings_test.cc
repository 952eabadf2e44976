#include "pmkvq/kv/spec/cache_settings.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using Kind = CacheField::Kind;
using testing_support::ExpectError;

// A value other than the default that the row allows.
std::string AnotherValue(const CacheField& field) {
  if (field.kind == Kind::kFlag) return "true";
  if (field.kind == Kind::kInteger) return std::to_string(field.least + 3 * field.multiple_of);
  return field.choices.back() == field.text({}) ? field.choices.front() : field.choices.back();
}

TEST(CacheFields, WhatIsSetReadsBack) {
  for (const CacheField& field : CacheFields()) {
    if (field.text == nullptr) continue;
    CacheSettings settings;
    const std::string value = AnotherValue(field);
    EXPECT_NE(field.text(settings), value) << field.option;
    field.set(settings, value);
    EXPECT_EQ(field.text(settings), value) << field.option;
    // And no other field changed.
    for (const CacheField& other : CacheFields()) {
      if (&other == &field || other.text == nullptr) continue;
      EXPECT_EQ(other.text(settings), other.text({})) << field.option << " " << other.option;
    }
  }
}

TEST(CacheFields, RowsAreWhole) {
  std::set<std::string> names;
  for (const CacheField& field : CacheFields()) {
    const bool has_option = *field.option != '\0';
    const bool has_key = field.key_of != CacheField::KeyOf::kNone;
    EXPECT_TRUE(has_option || has_key);
    EXPECT_NE(field.set, nullptr);
    EXPECT_EQ(has_option, field.text != nullptr) << field.option << field.key;
    EXPECT_TRUE(!has_option || names.insert(field.option).second) << field.option;
    EXPECT_TRUE(!has_key || names.insert(field.key).second) << field.key;
    EXPECT_EQ(field.choices.empty(), field.kind == Kind::kInteger || field.kind == Kind::kFlag);
    // Only options identify a run: keys do so as part of the SPEC.
    EXPECT_TRUE(has_option || field.record == CacheField::Record::kNever);
    EXPECT_TRUE(*field.plan_key == '\0' || field.kind != Kind::kInteger || field.most_in_plan > 0);
  }
}

SpecKeys AllKeys() {
  SpecKeys keys;
  for (const CacheField& field : CacheFields()) {
    if (field.key_of != CacheField::KeyOf::kNone) keys.push_back(KeyOfField(field));
  }
  return keys;
}

CacheSettings Apply(const std::string& text, FieldsToApply fields) {
  const MethodSpec spec = ParseMethodSpec(text);
  spec.Check(AllKeys());
  CacheSettings settings;
  ApplyFields(spec, fields, settings);
  return settings;
}

TEST(CacheFields, ASpecSetsItsFields) {
  const std::string text =
      "m:sink=4+window=256+policy=oldest-first+axis=channel+rotate=both+k=8+v=2";
  const CacheSettings all = Apply(text + "+static+scales=off", FieldsToApply::kAll);
  EXPECT_EQ(all.sink_tokens, 4);
  EXPECT_EQ(all.window_tokens, 256);
  EXPECT_EQ(all.policy, PolicyKind::kOldestFirst);
  EXPECT_EQ(all.k_axis, QuantAxis::kChannel);
  EXPECT_TRUE(all.rotate_keys && all.rotate_values && all.static_widths);
  EXPECT_FALSE(all.use_scales);
  EXPECT_EQ(std::get<BlockWidths>(all.widths).k, 8);
  EXPECT_EQ(std::get<BlockWidths>(all.widths).v, 2);
  EXPECT_EQ(std::get<BudgetWidth>(Apply("m:bits=4", FieldsToApply::kAll).widths).bits, 4);

  const CacheSettings options = Apply(text, FieldsToApply::kOptions);
  EXPECT_EQ(options.sink_tokens, 4);
  EXPECT_EQ(options.policy, PolicyKind::kOldestFirst);
  EXPECT_EQ(options.k_axis, QuantAxis::kToken);
  EXPECT_TRUE(std::holds_alternative<PlanWidths>(options.widths));

  ExpectError<InvalidInput>([] { Apply("m:window=200", FieldsToApply::kAll); },
                            {"--kv", "'m:window=200': window=200, expected a multiple of 128"});
}

}  // namespace
}  // namespace pmkvq
