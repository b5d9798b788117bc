# Compiles the many small files of llama.cpp's own library in batches: most of their time is spent on the same headers.
# Handed to cmake as CMAKE_PROJECT_TOP_LEVEL_INCLUDES; runs when all of llama.cpp's targets are known.
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL
  set_target_properties llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
