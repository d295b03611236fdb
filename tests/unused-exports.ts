/** Finds exports that no other file imports, and code that only its tests use. Pure: files in, findings out. */
import { posix } from "node:path";
import { type ParseResult, parseSync, Visitor } from "oxc-parser";
import type { SourceFile } from "./architecture.ts";

/** Files for tests: tests themselves, what they share, and the benchmarks. */
const isForTests = (path: string) =>
  /(?:\.test|-under-test)\.ts$/.test(path) || /^(?!packages\/|services\/)/.test(path) || path.startsWith("packages/testkit/");
/** Files that vitest loads, whose exports it calls. */
const vitestLoads = /(?:\.test|^tests\/.*\/global-setup)\.ts$/;
const isIndex = (path: string) => posix.basename(path) === "index.ts";

/**
 * @param sources - all of the repository, tests included, since they import too.
 * @param entries - the source file behind each specifier: `@loraline/bus` → `packages/bus/src/index.ts`.
 */
export function findUnusedExports(sources: readonly SourceFile[], entries: ReadonlyMap<string, string>): string[] {
  const parsed = new Map(sources.map(({ path, text }) => [path, parseSync(path, text)]));
  const resolve = (from: string, specifier: string): string | undefined =>
    specifier.startsWith(".") ? posix.join(posix.dirname(from), specifier) : entries.get(specifier);

  /** Importing files by `path#name`; the name is "*" where all names may be used. */
  const importers = new Map<string, string[]>();
  /** Where a name is exported again, by `path#name`. */
  const exportedAgain = new Map<string, { path: string; name: string | null }[]>();
  for (const [path, { module, program }] of parsed) {
    const use = (specifier: string, name: string): void => {
      const target = resolve(path, specifier);
      if (target !== undefined) add(importers, `${target}#${name}`, path);
    };
    for (const { moduleRequest, entries: names } of module.staticImports)
      for (const { importName } of names)
        use(moduleRequest.value, importName.kind === "NamespaceObject" ? "*" : (importName.name ?? "default"));
    for (const { entries: names } of module.staticExports)
      for (const { moduleRequest, importName, exportName } of names) {
        const target = moduleRequest ? resolve(path, moduleRequest.value) : undefined;
        if (target !== undefined) add(exportedAgain, `${target}#${importName.name ?? "*"}`, { path, name: exportName.name ?? null });
      }
    new Visitor({
      ImportExpression({ source }) {
        if (source.type === "Literal" && typeof source.value === "string") use(source.value, "*");
      },
      TSImportType({ source }) {
        use(source.value, "*");
      },
    }).visit(program);
  }
  const usersOf = (path: string, name: string): string[] => [
    ...(importers.get(`${path}#${name}`) ?? []),
    ...(importers.get(`${path}#*`) ?? []),
    ...(exportedAgain.get(`${path}#${name}`) ?? []).flatMap((again) => usersOf(again.path, again.name ?? name)),
    ...(exportedAgain.get(`${path}#*`) ?? []).flatMap((again) => usersOf(again.path, name)),
  ];

  const found: string[] = [];
  for (const [path, file] of parsed) {
    if (vitestLoads.test(path)) continue;
    for (const { entries: names } of file.module.staticExports)
      for (const { exportName, moduleRequest } of names) {
        const { name } = exportName;
        if (!name || (moduleRequest && !isIndex(path))) continue;
        const users = usersOf(path, name);
        if (users.length === 0) found.push(`${path}: no other file imports ${name}; do not export it`);
        else if (!moduleRequest && !isForTests(path) && users.every(isForTests) && timesNamed(file, name) < 2)
          found.push(`${path}: only tests use ${name}; delete it, or move it to the tests`);
      }
  }
  return found;
}

function timesNamed({ program }: ParseResult, name: string): number {
  let times = 0;
  new Visitor({
    Identifier(node) {
      if (node.name === name) times++;
    },
  }).visit(program);
  return times;
}

function add<T>(map: Map<string, T[]>, key: string, value: T): void {
  const values = map.get(key);
  if (values === undefined) map.set(key, [value]);
  else values.push(value);
}
