// How a function is seen from outside of its library.
#pragma once

#ifdef _WIN32
#define GSN_API extern "C" __declspec(dllexport)
#else
#define GSN_API extern "C" __attribute__((visibility("default")))
#endif
