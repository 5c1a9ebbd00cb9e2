import { readFileSync } from "node:fs";
import { defineConfig } from "vite";

// One script without imports, and the licence of what is in it.
export default defineConfig({
  build: {
    target: ["chrome123", "firefox120", "safari17.5"], // the first with light-dark()
    lib: { entry: "src/main.ts", formats: ["iife"], name: "unilsViewer", fileName: () => "viewer.js" },
  },
  plugins: [
    {
      name: "licence",
      generateBundle() {
        const source = readFileSync("node_modules/three/LICENSE", "utf8");
        this.emitFile({ type: "asset", fileName: "LICENSE.three.txt", source });
      },
    },
  ],
});
