# cuBLASLt as the target pmkvq::cublasLt, where there is one; also part of the installed package. It
# is looked for in the folder PMKVQ_CUBLAS_ROOT, and where that is empty in the CUDA toolkit, in the
# wheels of scripts/find-cuda.sh --install, and among the packages of python3 (PyPI's nvidia-cublas).
set(PMKVQ_CUBLAS_ROOT "" CACHE PATH
  "Folder with include/cublasLt.h and lib/libcublasLt.so.13; empty: looked for")

function(pmkvq_find_cublas)
  if(TARGET pmkvq::cublasLt)
    return()
  endif()
  set(roots ${PMKVQ_CUBLAS_ROOT})
  if(NOT roots)
    get_filename_component(toolkit ${CUDAToolkit_BIN_DIR} DIRECTORY)
    set(cache $ENV{XDG_CACHE_HOME})
    if(NOT cache)
      set(cache $ENV{HOME}/.cache)
    endif()
    file(GLOB wheels ${cache}/pmkvq/cuda-*/lib/python3*/site-packages/nvidia/cu*)
    execute_process(
      COMMAND python3 -c "import sys; print(';'.join(p + '/nvidia/cu13' for p in sys.path if p), end='')"
      OUTPUT_VARIABLE packages ERROR_QUIET)
    set(roots ${toolkit} ${wheels} ${packages})
  endif()
  foreach(root IN LISTS roots)
    file(GLOB libraries ${root}/lib64/libcublasLt.so* ${root}/lib/libcublasLt.so*
      ${root}/lib/*/libcublasLt.so*)
    set(major "")
    if(libraries AND EXISTS ${root}/include/cublasLt.h AND EXISTS ${root}/include/cublas_api.h)
      file(STRINGS ${root}/include/cublas_api.h major REGEX "define CUBLAS_VER_MAJOR +[0-9]+")
      string(REGEX REPLACE "[^0-9]" "" major "${major}")
    endif()
    if(major GREATER_EQUAL 13)
      list(GET libraries 0 library)
      add_library(pmkvq::cublasLt SHARED IMPORTED GLOBAL)
      set_target_properties(pmkvq::cublasLt PROPERTIES IMPORTED_LOCATION ${library}
        INTERFACE_INCLUDE_DIRECTORIES ${root}/include)
      return()
    endif()
  endforeach()
endfunction()
pmkvq_find_cublas()
