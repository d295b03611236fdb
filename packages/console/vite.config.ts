import { defineConfig } from "vite";

export default defineConfig({
  base: "/console/",
  // The workspace's packages are taken from their sources, as everywhere.
  resolve: { conditions: ["@loraline/source", "module", "browser", "production"] },
  build: {
    target: "es2023",
    assetsDir: "assets",
    // The content security policy allows no `data:` scripts or fonts, and few small files are worth it.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    chunkSizeWarningLimit: 1000,
  },
});
