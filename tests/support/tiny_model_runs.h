// For end-to-end tests: a random model of TinyModels() with the tokenizer of the shipped one, as
// its user runs it.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "pmkvq/io/json.h"
#include "support/command_help.h"
#include "support/gguf_model.h"
#include "support/run_program.h"

namespace pmkvq::testing_support {

inline const std::string kLongcot = PMKVQ_SOURCE_DIR "/models/longcot-10m";

// The parameter is the name in TinyModels().
class TinyModelRuns : public testing::TestWithParam<const char*> {
 protected:
  TinyModelRuns() {
    tiny_.vocab = 576;  // That of the tokenizer.
    weights_ = MakeTinyWeights(tiny_);
    WriteTinyModel(tiny_, weights_, folder_);
    for (const char* file : {"/tokenizer.json", "/tokenizer_config.json"}) {
      std::filesystem::copy_file(kLongcot + file, folder_.path() + file);
    }
  }

  static ProgramResult Run(const Args& args) {
    const ProgramResult result = RunProgram(args);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result;
  }

  // Ids of three sequences that decode side by side.
  static std::string Ids(const std::string& model, const Args& more) {
    const Args run = {"run",
                      "--model",
                      model,
                      "--prompt-ids",
                      "5,77,9,300,12,41",
                      "--max-tokens",
                      "400",
                      "--n-samples",
                      "3",
                      "--seed",
                      "7",
                      "--ignore-eos",
                      "--json",
                      "-"};
    const ProgramResult result = Run(Plus(run, more));
    if (result.exit_code != 0) return "";
    std::string ids;
    const JsonValue sequences = JsonValue::Parse(result.out, "run").At("sequences");
    for (size_t i = 0; i < sequences.size(); ++i) {
      EXPECT_EQ(sequences.At(i).At("output_ids").size(), 400u);
      ids += sequences.At(i).At("output_ids").Dump() + "\n";
    }
    return ids;
  }

  TinyModel tiny_ = TinyModels().at(GetParam());
  TinyWeights weights_;
  const TempFolder folder_;
};

}  // namespace pmkvq::testing_support
