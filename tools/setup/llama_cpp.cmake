# Given to llama.cpp's build (setup_steps.py), so that llama-server is compiled in less time. ggml and libllama, which
# compute the answers, are compiled as their authors have it.
cmake_language(DEFER CALL compile_in_less_time)

function(compile_in_less_time)
    # HTTP, JSON, chat templates, command line, pictures: much code, none of it in an inner loop.
    foreach(target llama-common cpp-httplib server-context llama-server-impl mtmd)
        target_compile_options(${target} PRIVATE -O1)
    endforeach()
    # Headers that nearly every source of these includes, read once.
    foreach(target llama-common server-context)
        target_precompile_headers(${target} PRIVATE
            <algorithm> <functional> <map> <memory> <regex> <string> <thread> <unordered_map> <vector>
            <nlohmann/json.hpp>)
    endforeach()
    # One small file for each of 45 picture encoders; the other sources of mtmd refuse to be compiled together.
    get_target_property(folder mtmd SOURCE_DIR)
    get_target_property(sources mtmd SOURCES)
    list(FILTER sources EXCLUDE REGEX "^models/")
    list(TRANSFORM sources PREPEND "${folder}/")
    set_property(SOURCE ${sources} DIRECTORY ${folder} PROPERTY SKIP_UNITY_BUILD_INCLUSION ON)
    set_target_properties(mtmd PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
endfunction()
