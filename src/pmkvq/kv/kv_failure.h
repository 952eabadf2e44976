// Why a sequence of a cache cannot go on: values that the cache, or the method it simulates, cannot
// hold. Such values come from the model's weights and the request, so they end one request.
#pragma once

#include <cstdint>
#include <string>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// For the user's error line: InvalidInput(where, what) gives "[where] what".
struct KvFailure {
  std::string where;  // Block and position.
  std::string what;   // The value found, the values expected, and a remedy.
};

// Positions `first` to `last` (inclusive) of a sequence in a block.
std::string KvWhere(int64_t layer, int64_t first, int64_t last);

// `value` of `name` ("key", "value") is not finite, or is not when it is rounded to `type`.
std::string UnfitValueMessage(const char* name, float value, DType type);

// Values of one group from `lowest` to `highest`, whose minimum or range is not finite in `type`.
std::string UnfitRangeMessage(const char* name, float lowest, float highest, DType type);

// A `name` that a device found not to fit f16; it does not say the value.
std::string UnfitOnDeviceMessage(const char* name);

// Of sequences whose Forward ended before its time.
KvFailure AbandonedForward();

// Thrown by a simulated method for values that its metadata cannot hold. The simulated cache
// catches it and ends the sequence; in calibration it ends the command.
class UnfitValues : public InvalidInput {
 public:
  explicit UnfitValues(const std::string& message)
      : InvalidInput("cache method", message), message_(message) {}
  const std::string& message() const { return message_; }

 private:
  std::string message_;
};

}  // namespace pmkvq
