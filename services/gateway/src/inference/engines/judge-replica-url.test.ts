import { describe, expect, it } from "vitest";
import { createReplicaUrlJudge, defaultReplicaHosts } from "./judge-replica-url.ts";

const pods = ["10.4.0.0/16:8000", "[fd00:4::]/32:8000", "*.engines.default.svc:8000"];

describe("the address of a replica", () => {
  it.each([
    ["http://10.4.7.9:8000", undefined],
    ["http://10.4.7.9:8000/", undefined],
    ["http://[fd00:4::7]:8000", undefined],
    ["http://engine-0.engines.default.svc:8000", undefined],
    ["http://10.5.7.9:8000", /none of the hosts/],
    ["http://10.4.7.9:4222", /none of the hosts/],
    ["http://10.4.7.9", /none of the hosts/],
    ["http://evil.example:8000", /none of the hosts/],
    ["http://a.b.engines.default.svc:8000", /none of the hosts/],
    ["http://engine-0.engines.default.svc.evil.example:8000", /none of the hosts/],
    ["http://0x7f.1:8000", /127\.0\.0\.1:8000 is none/],
    ["http://[::ffff:169.254.169.254]:8000", /none of the hosts/],
    ["http://user:pass@10.4.7.9:8000", /credentials/],
    ["http://10.4.7.9:8000/v1", /path/],
    ["http://10.4.7.9:8000/?a=b", /query/],
    ["http://10.4.7.9:8000/#a", /fragment/],
    ["file:///etc/passwd", /scheme/],
    ["10.4.7.9:8000", /no URL/],
    ["", /no URL/],
  ])("%s", (url, problem) => {
    const said = createReplicaUrlJudge(pods)(url);
    expect(said ?? "allowed").toMatch(problem ?? /^allowed$/);
  });

  it("is one of this machine or of a private network where nothing is set", () => {
    const judge = createReplicaUrlJudge(defaultReplicaHosts);
    for (const url of ["http://127.0.0.1:3", "http://[::1]:3", "https://192.168.1.1", "http://100.64.0.1:8000", "http://[fd12::1]:8000"])
      expect(judge(url), url).toBeUndefined();
    for (const url of ["http://169.254.169.254", "http://8.8.8.8:8000", "http://localhost.evil.example:8000", "http://0.0.0.0:8000"])
      expect(judge(url), url).toMatch(/none of the hosts/);
  });

  it.each(["10.0.0.0/64", "*.svc/8", "a b", "", "fd00::/8", "10.0.0.0/8:x"])("the rule %j is refused", (rule) => {
    expect(() => createReplicaUrlJudge([rule])).toThrow(/REPLICA_HOSTS/);
  });
});
