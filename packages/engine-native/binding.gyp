{
  "target_defaults": {
    "cflags": ["-std=gnu11", "-O3", "-fvisibility=hidden", "-Wno-psabi", "-Wno-unused-function"],
    "xcode_settings": { "GCC_OPTIMIZATION_LEVEL": "3", "GCC_C_LANGUAGE_STANDARD": "gnu11", "GCC_SYMBOLS_PRIVATE_EXTERN": "YES" }
  },
  "targets": [
    {
      "target_name": "kernels",
      "type": "static_library",
      "sources": [
        "c/engine/few.c",
        "c/engine/conv.c",
        "c/engine/rows.c",
        "c/engine/elementwise.c",
        "c/engine/volume.c",
        "c/engine/norm.c",
        "c/engine/morphology.c",
        "c/engine/fft.c"
      ],
      "include_dirs": ["c/shim"],
      "defines": ["__wasm_relaxed_simd__"],
      "cflags": ["-fPIC", "-ffp-contract=off"],
      "conditions": [
        [
          "target_arch=='x64'",
          { "cflags": ["-mavx2", "-mfma"], "xcode_settings": { "OTHER_CFLAGS": ["-mavx2", "-mfma", "-ffp-contract=off"] } }
        ]
      ]
    },
    {
      "target_name": "matforge_engine",
      "dependencies": ["kernels"],
      "sources": ["c/addon.c", "c/pool.c", "c/gemm.c"],
      "include_dirs": ["c"]
    }
  ]
}
