import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

// Where `npm run dev` finds the API. The built page is served by the service itself.
const service = process.env.STATUSSYNC_SERVER ?? "http://127.0.0.1:8080";

export default defineConfig({
  // Relative to <base href>, which the service writes into index.html: one build serves every base_path.
  base: "./",
  resolve: {
    alias: {
      "@statussync/client": fileURLToPath(new URL("../../clients/typescript/src/index.ts", import.meta.url)),
    },
  },
  build: {
    outDir: "../dist",
    emptyOutDir: true,
    target: "es2022",
    // The Content-Security-Policy allows files of the service only: no data: in scripts and styles, nothing inline.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    cssCodeSplit: true,
    sourcemap: false,
  },
  server: {
    host: "127.0.0.1",
    // The service refuses foreign origins, so the proxy speaks in the service's own name.
    proxy: { "/api": { target: service, changeOrigin: true, ws: true, rewriteWsOrigin: true } },
  },
});
