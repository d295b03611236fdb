/**
 * Makes the npm package `@loraline/client`: the typed HTTP API for programs in Node and browsers, in plain JavaScript with its types.
 *   node --conditions=@loraline/source infra/release/pack-client-main.ts FOLDER
 */
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { version } from "@loraline/contracts";
import { rolldown } from "rolldown";
import { parse } from "yaml";

const root = join(import.meta.dirname, "../..");
const [out] = process.argv.slice(2);
if (out === undefined) throw new Error("usage: pack-client-main.ts FOLDER");
const { catalog } = parse(readFileSync(join(root, "pnpm-workspace.yaml"), "utf8")) as { catalog: Record<string, string> };

/** Its types are zod's, so whoever uses it has zod too. */
const external = ["zod", "eventsource-parser"];

rmSync(out, { recursive: true, force: true });
mkdirSync(join(out, "dist"), { recursive: true });
const bundle = await rolldown({
  cwd: root,
  input: { index: "packages/client/src/index.ts" },
  platform: "neutral",
  resolve: { conditionNames: ["@loraline/source", "import", "default"] },
  external: (id) => external.some((name) => id === name || id.startsWith(`${name}/`)),
});
await bundle.write({ dir: join(out, "dist"), format: "esm", comments: { legal: true } });
await bundle.close();

// Declarations of the client and of the contracts, which no package of ours needs elsewhere.
const work = mkdtempSync(join(tmpdir(), "loraline-client-types-"));
try {
  const settings = {
    extends: join(root, "tsconfig.base.json"),
    compilerOptions: {
      declaration: true,
      emitDeclarationOnly: true,
      rootDir: join(root, "packages"),
      outDir: join(out, "types"),
      typeRoots: [join(root, "node_modules/@types")],
      // Not through node_modules: what is there is another's, and gets no declarations.
      paths: { "@loraline/contracts": [join(root, "packages/contracts/src/index.ts")] },
    },
    files: [join(root, "packages/client/src/index.ts")],
  };
  writeFileSync(join(work, "tsconfig.json"), JSON.stringify(settings));
  execFileSync(join(root, "node_modules/.bin/tsc"), ["-p", join(work, "tsconfig.json")], { stdio: "inherit" });
} finally {
  rmSync(work, { recursive: true });
}
const contracts = join(out, "types/contracts/src/index.js");
for (const entry of readdirSync(join(out, "types/client"), { recursive: true, withFileTypes: true })) {
  if (!entry.isFile()) continue;
  const file = join(entry.parentPath, entry.name);
  writeFileSync(
    file,
    readFileSync(file, "utf8").replaceAll('"@loraline/contracts"', JSON.stringify(relative(entry.parentPath, contracts))),
  );
}

writeFileSync(
  join(out, "package.json"),
  JSON.stringify(
    {
      name: "@loraline/client",
      version,
      description: "The HTTP API of Loraline, a LoRA production line, typed.",
      license: "Apache-2.0",
      type: "module",
      sideEffects: false,
      exports: { ".": { types: "./types/client/src/index.d.ts", default: "./dist/index.js" } },
      files: ["dist", "types"],
      engines: { node: ">=22" },
      dependencies: Object.fromEntries(external.map((name) => [name, catalog[name]])),
    },
    null,
    2,
  ),
);
cpSync(join(root, "LICENSE"), join(out, "LICENSE"));
writeFileSync(
  join(out, "README.md"),
  `# @loraline/client

One method for each operation of the HTTP API, by its operation id in the server's \`/v1/loraline/openapi.json\`; requests and answers are typed, and answers are checked.

\`\`\`ts
import { ApiError, createApiClient } from "@loraline/client";

const loraline = createApiClient({ url: "https://loraline.example.com", apiKey: process.env.LORALINE_API_KEY ?? "" });
for (const { id } of (await loraline.listModels()).data) console.log(id);
\`\`\`

An \`ApiError\` has the server's stable \`code\`, its message and the field that is wrong.
`,
);
