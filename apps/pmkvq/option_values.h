// What the values of options may be, one validator per kind. A wrong value ends the program as
// wrong usage (exit code 2): "--top-k: found 'four', expected a whole number from 0".
//
// Usage: command.add_option("--top-k", top_k, "...")->transform(WholeNumber(0));
// `transform` rather than `check`: numbers are handed on in the form that CLI11 reads rightly.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace pmkvq::cli {

// Tokens of a sequence and of all that counts them; sequences of a batch.
inline constexpr int64_t kMostTokens = int64_t{1} << 40;
inline constexpr int64_t kMostBatch = 4096;

// Decimal digits with or without '-'. Leading zeros are allowed and mean nothing ("010" is ten);
// blanks, exponents, fractions, '+' and everything outside of [least, most] are refused.
CLI::Validator WholeNumber(int64_t least = std::numeric_limits<int64_t>::min(),
                           int64_t most = std::numeric_limits<int64_t>::max());
// The same for a seed: 0 to 2^64 - 1.
CLI::Validator SeedNumber();
// A finite decimal number, exponents allowed, in [least, most].
CLI::Validator DecimalNumber(double least = std::numeric_limits<double>::lowest(),
                             double most = std::numeric_limits<double>::max());

// One of these names, which --help shows; names the nearest for another one.
CLI::Validator OneOf(const std::vector<std::string>& names);

// The values of a list with commas ("4096,16384"), each as WholeNumber has it; no value may be
// missing. Throws CLI::ValidationError naming `option`.
std::vector<int64_t> ParseWholeNumbers(const std::string& text, const std::string& option,
                                       int64_t least, int64_t most);

// Declares a list of whole numbers, as one text with commas, several texts or both. `values` holds
// the defaults until the option is given.
CLI::Option* AddWholeNumbers(CLI::App& command, const std::string& name,
                             std::vector<int64_t>& values, const std::string& text, int64_t least,
                             int64_t most);

// The pieces between commas, as they are.
std::vector<std::string> SplitAtCommas(const std::string& text);

// Widths of quantised values in a list with commas, out of 16, 8, 4 and 2. Throws
// CLI::ValidationError naming `option`.
std::vector<int> ParseWidths(const std::string& text, const std::string& option);

// --threads, 0 (all processors) to kMostThreads.
inline constexpr int kMostThreads = 1024;
CLI::Option* AddThreads(CLI::App& command, int& threads);

// --kv-budget: a size of more than 0 bytes (base/byte_size.h). A number without a unit is bytes;
// one that is too small to be meant so is refused with a question. Both functions throw
// CLI::ValidationError naming the option.
int64_t ParseKvBudget(const std::string& text);
// --memory-budget: likewise, but a number without a unit is MiB, as in the reference program.
int64_t ParseMemoryBudget(const std::string& text);
CLI::Validator KvBudgetSize();
CLI::Validator KvBudgetSizes();  // Several with commas.
CLI::Validator MemoryBudgetSize();
// --memory of a machine: a size; a number without a unit is bytes.
CLI::Validator MemorySize();

// The rules that every option of every command keeps, whoever declared it: no empty value, no
// option's name in the place of a value, whole numbers and decimals as above. Call once, when all
// commands are declared.
void ApplyValueRules(CLI::App& app);

}  // namespace pmkvq::cli
