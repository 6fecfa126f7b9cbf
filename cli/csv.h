// CSV as RFC 4180 has it.
#pragma once

#include <string>
#include <vector>

namespace trainyard::cli {

/// One line, with its end. Quotes stand around what holds commas, quotes or line breaks.
std::string csv_row(const std::vector<std::string>& fields);

/// The shortest digits that give the value back; nothing for what is no number.
std::string csv_number(double value);

}  // namespace trainyard::cli
