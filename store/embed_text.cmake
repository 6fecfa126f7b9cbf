# Writes OUTPUT, a C++ file that defines `const char* NAME()` returning the text of INPUT.
# Raw strings are cut into pieces because compilers need only support 64 KiB in one literal.
file(READ "${INPUT}" text)
string(LENGTH "${text}" length)
set(body "")
set(at 0)
while(at LESS length)
  string(SUBSTRING "${text}" ${at} 8000 piece)
  string(APPEND body "\n    R\"~embed~(${piece})~embed~\"")
  math(EXPR at "${at} + 8000")
endwhile()
file(WRITE "${OUTPUT}" "// Generated from ${INPUT}.\n"
  "namespace trainyard::store {\nconst char* ${NAME}() {\n  return${body};\n}\n}  // namespace trainyard::store\n")
