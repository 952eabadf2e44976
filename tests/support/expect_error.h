// Expects an error of one class whose message names what a user needs.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

namespace pmkvq::testing_support {

// Runs `action`; it must throw exactly `ErrorType`, with every one of `parts` in the message, and
// the message must be one line.
template <class ErrorType, class Action>
void ExpectError(Action action, std::initializer_list<std::string> parts) {
  try {
    action();
  } catch (const ErrorType& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' not in: " << message;
    }
    return;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
    return;
  }
  ADD_FAILURE() << "no error";
}

}  // namespace pmkvq::testing_support
