import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createGuardedFetch } from "@loraline/runtime";
import { expect, onTestFinished, test } from "vitest";
import { hubFileUrl, hubHeaders, listHubFiles } from "./hub.ts";

test("lists the files of one commit, page by page, and names the address of each", async () => {
  const sha = "a".repeat(40);
  const server = createServer((request, response) => {
    expect(request.headers.authorization).toBe("Bearer t");
    const answers: Record<string, unknown> = {
      "/api/datasets/org/data/revision/main": { sha },
      [`/api/datasets/org/data/tree/${sha}?recursive=true`]: [
        { type: "directory", path: "data" },
        { type: "file", path: "README.md", size: 3 },
      ],
      "/next": [{ type: "file", path: "data/train 1.parquet", size: 9, lfs: { oid: "b".repeat(64) } }],
    };
    const answer = answers[request.url ?? ""];
    if (request.url?.includes("/tree/") === true) response.setHeader("link", '</next>; rel="next"');
    response.writeHead(answer === undefined ? 404 : 200).end(JSON.stringify(answer));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  const { port } = server.address() as AddressInfo;
  const hub = { url: `http://127.0.0.1:${port}`, allow: [`127.0.0.1:${port}`] };
  await using guarded = createGuardedFetch({ allow: hub.allow });
  const repository = { endpoint: `${hub.url}/`, kind: "datasets", name: "org/data", revision: "main", token: "t" } as const;
  expect(await listHubFiles(guarded, repository)).toEqual({
    commit: sha,
    files: [
      { path: "README.md", size: 3, sha256: undefined },
      { path: "data/train 1.parquet", size: 9, sha256: "b".repeat(64) },
    ],
  });
  expect(hubFileUrl(repository, "data/train 1.parquet")).toBe(`${hub.url}/datasets/org/data/resolve/main/data/train%201.parquet`);
  expect(hubFileUrl({ ...repository, kind: "models" }, "a.json")).toBe(`${hub.url}/org/data/resolve/main/a.json`);
  expect(hubHeaders({})).toEqual({});
  await expect(listHubFiles(guarded, { ...repository, name: "org/other" })).rejects.toMatchObject({ code: "HUB_NOT_FOUND" });
  await expect(listHubFiles(guarded, { ...repository, name: "../x" })).rejects.toMatchObject({ code: "HUB_NAME_INVALID" });
});
