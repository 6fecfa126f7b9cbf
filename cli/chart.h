// Line charts as SVG, for what is better looked at than read.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace trainyard::cli {

struct Line {
  std::string name;
  std::vector<double> x, y;         // points that are not finite, or not positive on a log axis, are left out
  std::optional<std::size_t> mark;  // a point that is drawn larger
  bool points_only = false;
};

/// Logarithmic axes are of base 2, and labelled with its powers.
struct Axis {
  std::string label;
  bool log2 = false;
  std::optional<double> min, max;  // unset: of the points. What lies beyond is clipped
};

struct Panel {
  std::string title;
  Axis x, y;
  /// In an order that colours follow, from dark to light.
  std::vector<Line> lines;
};

/// Panels row by row, each as wide as the others, under one title; lines are named once, below.
std::string chart_svg(const std::string& title, const std::vector<Panel>& panels, std::size_t columns);

}  // namespace trainyard::cli
