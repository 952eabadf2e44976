// The RoPE of config.json: its scaling, in each spelling.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/io/model_config.h"
#include "support/model_config_text.h"

namespace pmkvq {
namespace {

using testing_support::ExpectBad;
using testing_support::Fields;
using testing_support::Gemma;
using testing_support::Llama;
using testing_support::Parse;

// The spellings of transformers 4 and 5; a window that holds all positions keeps its RoPE.
TEST(RopeConfig, LocalRopeOfGemma3) {
  const auto parse = [](const Fields& changes) {
    return Parse("Gemma3ForCausalLM", Gemma(changes));
  };
  const ModelConfig absent = parse({});
  EXPECT_EQ(absent.rope_theta, 1e6);
  ASSERT_TRUE(absent.local_rope.has_value());
  EXPECT_EQ(absent.local_rope->theta, 10000);
  EXPECT_EQ(absent.local_rope->blocks,
            (std::vector<bool>{true, true, true, true, true, false, true, true}));
  const Fields old_spelling = {{"rope_theta", "5e5"},
                               {"rope_local_base_freq", "2e4"},
                               {"rope_scaling", R"({"rope_type":"linear","factor":8.0})"}};
  const Fields new_spelling = {
      {"rope_parameters",
       R"({"full_attention":{"rope_type":"linear","factor":8.0,"rope_theta":5e5},)"
       R"("sliding_attention":{"rope_type":"default","rope_theta":2e4}})"}};
  for (const Fields& fields : {old_spelling, new_spelling}) {
    const ModelConfig config = parse(fields);
    EXPECT_EQ(config.rope_theta, 5e5);
    EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLinear);
    EXPECT_EQ(config.rope_scaling.factor, 8);
    EXPECT_EQ(config.local_rope->theta, 2e4);
    EXPECT_EQ(config.local_rope->scaling.type, RopeScaling::Type::kDefault);
  }
  for (const char* window : {"32768", "99999"}) {
    EXPECT_EQ(parse({{"sliding_window", window}}).sliding_windows[0], 32768);
  }
  EXPECT_FALSE(parse({{"sliding_window_pattern", "1"}}).local_rope.has_value());
  EXPECT_FALSE(Llama().local_rope.has_value());
  ExpectBad<Unsupported>(
      "Gemma3ForCausalLM",
      Gemma({{"rope_parameters", R"({"full_attention":{},"sliding_attention":{"type":"x"}})"}}),
      {"rope_parameters.sliding_attention.type: found \"x\""});
}

// The scaling object in each of its spellings: new, old, and old with "type".
std::vector<Fields> Spellings(const std::string& type, const std::string& rest) {
  const std::string tail = rest.empty() ? "" : "," + rest;
  return {{{"rope_parameters",
            fmt::format(R"({{"rope_theta":500000.0,"rope_type":"{}"{}}})", type, tail)},
           {"rope_theta", ""}},
          {{"rope_scaling", fmt::format(R"({{"rope_type":"{}"{}}})", type, tail)}},
          {{"rope_scaling", fmt::format(R"({{"type":"{}"{}}})", type, tail)}}};
}

TEST(RopeConfig, DefaultAndLinear) {
  for (const Fields& fields : Spellings("default", "")) {
    EXPECT_EQ(Llama(fields).rope_scaling.type, RopeScaling::Type::kDefault);
    EXPECT_EQ(Llama(fields).rope_theta, 500000.0);
  }
  for (const Fields& fields : Spellings("linear", R"("factor":4)")) {
    EXPECT_EQ(Llama(fields).rope_scaling.type, RopeScaling::Type::kLinear);
    EXPECT_EQ(Llama(fields).rope_scaling.factor, 4.0);
    EXPECT_EQ(Llama(fields).rope_theta, 500000.0);
  }
  for (const Fields& fields : Spellings("linear", "")) {
    ExpectBad<InvalidInput>("LlamaForCausalLM", fields, {"factor: found nothing"});
  }
  for (const Fields& fields : Spellings("linear", R"("factor":0.5)")) {
    ExpectBad<InvalidInput>("LlamaForCausalLM", fields,
                            {"factor: found 0.5, expected a number of at least 1"});
  }
}

TEST(RopeConfig, Llama3) {
  const std::string rest =
      R"("factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192)";
  for (const Fields& fields : Spellings("llama3", rest)) {
    const RopeScaling scaling = Llama(fields).rope_scaling;
    EXPECT_EQ(scaling.type, RopeScaling::Type::kLlama3);
    EXPECT_EQ(scaling.factor, 8.0);
    EXPECT_EQ(scaling.low_freq_factor, 1.0);
    EXPECT_EQ(scaling.high_freq_factor, 4.0);
    EXPECT_EQ(scaling.original_max_position_embeddings, 8192);
    EXPECT_EQ(scaling.attention_factor, 1.0);
  }
  EXPECT_EQ(Llama(Spellings("llama3", R"("factor":8,"low_freq_factor":1,"high_freq_factor":4)")[1])
                .rope_scaling.original_max_position_embeddings,
            32768);  // max_position_embeddings.
  for (const char* field : {"factor", "low_freq_factor", "high_freq_factor"}) {
    const size_t at = rest.find(fmt::format("\"{}\"", field));
    std::string without = rest;
    without[at + 1] = 'X';  // Renames the field.
    ExpectBad<InvalidInput>("LlamaForCausalLM", Spellings("llama3", without)[1],
                            {fmt::format("rope_scaling.{}: found nothing", field)});
  }
  ExpectBad<InvalidInput>(
      "LlamaForCausalLM",
      Spellings(
          "llama3",
          R"("factor":8,"low_freq_factor":4,"high_freq_factor":4,"original_max_position_embeddings":8192)")
          [0],
      {"rope_parameters.high_freq_factor: found 4, expected a number above low_freq_factor"});
}

RopeScaling Yarn(const std::string& rest) {
  return Llama(Spellings("yarn", R"("factor":4.0)" + rest)[1]).rope_scaling;
}

TEST(RopeConfig, Yarn) {
  for (const Fields& fields :
       Spellings("yarn", R"("factor":4.0,"original_max_position_embeddings":8192)")) {
    const RopeScaling scaling = Llama(fields).rope_scaling;
    EXPECT_EQ(scaling.type, RopeScaling::Type::kYarn);
    EXPECT_EQ(scaling.factor, 4.0);
    EXPECT_EQ(scaling.original_max_position_embeddings, 8192);
    EXPECT_EQ(scaling.beta_fast, 32.0);
    EXPECT_EQ(scaling.beta_slow, 1.0);
    EXPECT_TRUE(scaling.truncate);
    EXPECT_DOUBLE_EQ(scaling.attention_factor, 0.1 * std::log(4.0) + 1);
  }
  EXPECT_EQ(Yarn("").original_max_position_embeddings, 32768);
  const RopeScaling other = Yarn(R"(,"beta_fast":16,"beta_slow":2,"truncate":false)");
  EXPECT_EQ(other.beta_fast, 16.0);
  EXPECT_EQ(other.beta_slow, 2.0);
  EXPECT_FALSE(other.truncate);
}

TEST(RopeConfig, PositionsOfYarn) {
  const auto positions = [](const Fields& fields) { return Llama(fields).max_position_embeddings; };
  for (const Fields& fields : Spellings("yarn", R"("factor":4.0)")) {
    EXPECT_EQ(positions(fields), 131072);  // 4 x max_position_embeddings, the default.
  }
  for (const Fields& fields :
       Spellings("yarn", R"("factor":2.5,"original_max_position_embeddings":8192)")) {
    EXPECT_EQ(positions(fields), 32768);  // 20480 is less.
  }
  EXPECT_EQ(positions(Spellings("linear", R"("factor":4.0)")[0]), 32768);
  ExpectBad<InvalidInput>("LlamaForCausalLM", Spellings("yarn", R"("factor":1e9)")[0],
                          {"at most 1073741824"});
}

TEST(RopeConfig, WhichOfTwoPlacesCounts) {
  const std::string yarn = R"({"rope_type":"yarn","factor":4})";
  const std::string plain = R"({"rope_type":"default","rope_theta":10000.0})";
  const auto type = [](const Fields& fields) { return Llama(fields).rope_scaling.type; };
  EXPECT_EQ(type({{"rope_scaling", yarn}, {"rope_parameters", plain}}), RopeScaling::Type::kYarn);
  EXPECT_EQ(type({{"rope_scaling", "{}"}, {"rope_parameters", yarn}}), RopeScaling::Type::kYarn);
  EXPECT_EQ(type({{"rope_scaling", "null"}, {"rope_parameters", yarn}}), RopeScaling::Type::kYarn);
  EXPECT_EQ(type({{"rope_scaling", plain}, {"rope_parameters", yarn}}),
            RopeScaling::Type::kDefault);
  EXPECT_EQ(type({{"rope_parameters", R"({"rope_type":"default","type":"yarn"})"}}),
            RopeScaling::Type::kDefault);
  EXPECT_EQ(type({{"rope_parameters", "{}"}}), RopeScaling::Type::kDefault);
  // rope_theta: inside, beside, default.
  EXPECT_EQ(Llama({{"rope_scaling", R"({"rope_theta":7})"}}).rope_theta, 7.0);
  EXPECT_EQ(Llama({{"rope_theta", ""}, {"rope_scaling", yarn}}).rope_theta, 10000.0);
  ExpectBad<Unsupported>(
      "LlamaForCausalLM",
      {{"rope_theta", ""}, {"rope_scaling", yarn}, {"rope_parameters", R"({"rope_theta":1e6})"}},
      {"rope_parameters.rope_theta: found 1e6", "rope_scaling"});
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"rope_theta", "null"}},
                          {"rope_theta: found null, expected a number above 0"});
  // Original positions: beside the set before inside.
  EXPECT_EQ(Llama({{"original_max_position_embeddings", "4096"},
                   {"rope_scaling",
                    R"({"type":"yarn","factor":4,"original_max_position_embeddings":8192})"}})
                .rope_scaling.original_max_position_embeddings,
            4096);
  ExpectBad<InvalidInput>(
      "LlamaForCausalLM",
      {{"rope_scaling", R"({"type":"yarn","factor":4,"original_max_position_embeddings":null})"}},
      {"original_max_position_embeddings: found null"});
  // A factor of null is the ratio of the lengths.
  EXPECT_EQ(Llama({{"rope_scaling",
                    R"({"type":"yarn","factor":null,"original_max_position_embeddings":8192})"}})
                .rope_scaling.factor,
            4.0);
}

TEST(RopeConfig, ValuesByLayerType) {
  const auto nested = [](const std::string& values) {
    return Fields{{"rope_theta", ""}, {"rope_parameters", "{\"full_attention\":" + values + "}"}};
  };
  EXPECT_EQ(Llama(nested(R"({"rope_type":"default","rope_theta":1e6})")).rope_theta, 1e6);
  const ModelConfig yarn = Llama(nested(R"({"rope_type":"yarn","factor":4})"));
  EXPECT_EQ(yarn.rope_scaling.type, RopeScaling::Type::kYarn);
  EXPECT_EQ(yarn.max_position_embeddings, 131072);
  EXPECT_EQ(yarn.rope_theta, 10000.0);
  const auto both = [](const std::string& sliding) {
    return Fields{{"rope_theta", ""},
                  {"rope_parameters",
                   R"({"full_attention":{"rope_theta":1e6},"sliding_attention":)" + sliding + "}"}};
  };
  EXPECT_EQ(Llama(both(R"({"rope_theta":1e6})")).rope_theta, 1e6);
  EXPECT_EQ(Llama(both("null")).rope_theta, 1e6);
  ExpectBad<Unsupported>("LlamaForCausalLM", both(R"({"rope_theta":1e4})"),
                         {"rope_parameters.sliding_attention: found {", "one RoPE"});
  ExpectBad<Unsupported>("LlamaForCausalLM", nested(R"({"partial_rotary_factor":0.5})"),
                         {"rope_parameters.full_attention.partial_rotary_factor: found 0.5"});
  ExpectBad<Unsupported>("LlamaForCausalLM",
                         nested(R"({"type":"yarn","factor":2,"truncate":false})"),
                         {"full_attention.truncate: found false"});
  ExpectBad<Unsupported>(
      "LlamaForCausalLM",
      {{"rope_parameters", R"({"full_attention":{"rope_theta":5},"rope_theta":6})"}},
      {"rope_parameters.rope_theta: found 6"});
  ExpectBad<Unsupported>("LlamaForCausalLM",
                         {{"rope_parameters", R"({"sliding_attention":{"rope_theta":5}})"}},
                         {"rope_parameters.sliding_attention: found {"});
}

TEST(RopeConfig, YarnAttentionFactorAsInTransformers) {
  EXPECT_EQ(Yarn(R"(,"attention_factor":1.5,"mscale":2,"mscale_all_dim":1)").attention_factor, 1.5);
  EXPECT_DOUBLE_EQ(Yarn(R"(,"mscale":0.707,"mscale_all_dim":1.0)").attention_factor,
                   (0.0707 * std::log(4.0) + 1) / (0.1 * std::log(4.0) + 1));
  EXPECT_DOUBLE_EQ(Yarn(R"(,"mscale":2.0)").attention_factor, 0.1 * std::log(4.0) + 1);
  EXPECT_DOUBLE_EQ(Yarn(R"(,"mscale":2.0,"mscale_all_dim":0)").attention_factor,
                   0.1 * std::log(4.0) + 1);
  EXPECT_EQ(Llama(Spellings("yarn", R"("factor":1)")[0]).rope_scaling.attention_factor, 1.0);
}

TEST(RopeConfig, BadYarn) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "factor: found nothing"},
      {R"("factor":4,"beta_fast":1,"beta_slow":2)", "beta_fast: found 1, expected"},
      {R"("factor":4,"beta_slow":0)", "beta_slow: found 0"},
      {R"("factor":4,"attention_factor":-1)", "attention_factor: found -1"},
      {R"("factor":4,"mscale":-1,"mscale_all_dim":1)", "mscale: found -1"},
      {R"("factor":4,"mscale":1,"mscale_all_dim":-1)", "mscale_all_dim: found -1"},
      {R"("factor":4,"truncate":"x")", "truncate: found \"x\""},
      {R"("factor":4,"original_max_position_embeddings":0)", "original_max_position_embeddings"},
  };
  for (const auto& [rest, message] : cases) {
    for (const Fields& fields : Spellings("yarn", rest)) {
      ExpectBad<InvalidInput>("Qwen2ForCausalLM", fields, {message});
    }
  }
}

TEST(RopeConfig, RefusedOrSenseless) {
  for (const char* type : {"dynamic", "longrope", "su", "mrope", ""}) {
    for (const Fields& fields : Spellings(type, R"("factor":2)")) {
      ExpectBad<Unsupported>("LlamaForCausalLM", fields,
                             {fmt::format("type: found \"{}\", expected default, linear", type)});
    }
  }
  const auto expect = [](const Fields& changes, const std::string& message) {
    ExpectBad<InvalidInput>("LlamaForCausalLM", changes, {message});
  };
  expect({{"rope_scaling", "4"}}, "rope_scaling: found 4, expected an object or null");
  expect({{"rope_parameters", "[]"}}, "rope_parameters: found []");
  expect({{"rope_scaling", R"({"factor":2})"}}, "rope_scaling.rope_type: found nothing");
  expect({{"rope_scaling", R"({"rope_type":2})"}}, "rope_scaling.rope_type: found 2");
  expect({{"rope_parameters", R"({"rope_theta":0})"}}, "rope_parameters.rope_theta: found 0");
  ExpectBad<Unsupported>("LlamaForCausalLM",
                         {{"rope_parameters", R"({"partial_rotary_factor":0.25})"}},
                         {"rope_parameters.partial_rotary_factor: found 0.25"});
  EXPECT_EQ(Llama({{"rope_parameters", R"({"rope_theta":7})"}}).rope_theta, 7.0);
  EXPECT_EQ(Llama({{"rope_parameters", R"({"rope_type":"default"})"}}).rope_theta, 500000.0);
}

}  // namespace
}  // namespace pmkvq
