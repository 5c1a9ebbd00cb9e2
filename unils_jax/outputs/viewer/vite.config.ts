import { readFileSync } from "node:fs";
import { defineConfig } from "vite";

// What each mode builds: scripts without imports, each from one file. The first one empties the folder.
const ENTRIES: Record<string, string> = {
  viewer: "src/main.ts",
  live: "src/live/main.ts",
  capture: "src/live/capture.ts",
  study: "src/study/main.ts",
};

export default defineConfig(({ mode }) => ({
  build: {
    target: ["chrome123", "firefox120", "safari17.5"], // the first with light-dark()
    emptyOutDir: mode === "viewer",
    lib: { entry: ENTRIES[mode]!, formats: ["iife"], name: `unils_${mode}`, fileName: () => `${mode}.js` },
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
}));
