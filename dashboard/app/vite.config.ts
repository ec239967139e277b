import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, constants } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

// Where `npm run dev` finds the API. The built page is served by the service itself.
const service = process.env.STATUSSYNC_SERVER ?? "http://127.0.0.1:8080";

/** precompressed puts a Brotli form beside each file, which the service sends to who takes it. */
function precompressed(): Plugin {
  return {
    name: "precompressed",
    apply: "build",
    // Once the files are written: until then other plugins may still change them.
    async writeBundle(options, bundle) {
      const params = { [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY };
      for (const name of Object.keys(bundle)) {
        if (!/\.(js|css|svg)$/.test(name)) continue;
        const path = join(options.dir!, name);
        const data = await readFile(path);
        if (data.length >= 512) await writeFile(path + ".br", brotliCompressSync(data, { params }));
      }
    },
  };
}

export default defineConfig({
  plugins: [precompressed()],
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
    cssTarget: ["chrome123", "firefox120", "safari17.5"], // those that know light-dark()
    // The Content-Security-Policy allows files of the service only: no data: in scripts and styles, nothing inline.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    cssCodeSplit: true,
    sourcemap: false,
    rolldownOptions: { checks: { pluginTimings: false } }, // compressing takes longer than building, which is no news
  },
  server: {
    host: "127.0.0.1",
    // The service refuses foreign origins, so the proxy speaks in the service's own name.
    proxy: { "/api": { target: service, changeOrigin: true, ws: true, rewriteWsOrigin: true } },
  },
});
