# Lua: tables, strings, closures and coroutines; every block goes through realloc.
# needs: lua
lua "$HERE/work.lua" 2>>served
