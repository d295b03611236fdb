/**
 * Pure: whether the gateway may ask the address that a replica's agent wrote into KV `replicas`. Whoever holds an agent's credentials could
 * write any, and so have the gateway send chats and the engines' key to a server of his own, or requests to servers inside the cluster.
 */
import { BlockList, isIP } from "node:net";
import { PermanentError } from "@loraline/runtime";

/** Without a setting: addresses of this machine and of private networks, on any port. */
export const defaultReplicaHosts = ["loopback", "private"] as const;

const namedRanges: Readonly<Record<string, readonly string[]>> = {
  loopback: ["127.0.0.0/8", "::1/128"],
  private: ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"],
};

interface HostRule {
  addresses: BlockList;
  /** A host's name; `*` stands for one label. */
  name: RegExp | undefined;
  port: string | undefined;
}

/**
 * @param allowed - each `HOST` or `HOST:PORT`. HOST: `loopback`, `private`, an address or range (`10.4.0.0/16`, `[fd00::]/8`), or a name
 * such as `*.engines.default.svc`.
 * @returns what is wrong with a URL; undefined: nothing.
 * @throws PermanentError SETTING_INVALID
 */
export function createReplicaUrlJudge(allowed: readonly string[]): (url: string) => string | undefined {
  const rules = allowed.map(ruleOf);
  const judged = new Map<string, string | undefined>();
  return (url) => {
    if (judged.has(url)) return judged.get(url);
    // Addresses come and go with pods.
    if (judged.size >= 10_000) judged.clear();
    const problem = problemOf(url, rules, allowed);
    judged.set(url, problem);
    return problem;
  };
}

function ruleOf(text: string): HostRule {
  const [, bracketed, plain = "", prefix, port] = /^(?:\[([0-9a-f:.]+)\]|([\w.*-]+))(?:\/(\d{1,3}))?(?::(\d{1,5}))?$/i.exec(text) ?? [];
  const host = bracketed ?? plain;
  const addresses = new BlockList();
  const add = (address: string, bits: number): void => addresses.addSubnet(address, bits, isIP(address) === 6 ? "ipv6" : "ipv4");
  try {
    const named = Object.hasOwn(namedRanges, host) ? namedRanges[host] : undefined;
    if (named !== undefined && prefix === undefined) {
      for (const range of named) add(range.split("/")[0] ?? "", Number(range.split("/")[1]));
      return { addresses, name: undefined, port };
    }
    if (isIP(host) > 0) {
      add(host, prefix === undefined ? (isIP(host) === 6 ? 128 : 32) : Number(prefix));
      return { addresses, name: undefined, port };
    }
  } catch {
    // The range has more bits than an address; told below.
  }
  if (host === "" || prefix !== undefined || isIP(host) > 0) {
    throw new PermanentError(
      "SETTING_INVALID",
      `REPLICA_HOSTS: "${text}" is no rule. Give loopback, private, an address or range such as 10.4.0.0/16 ([fd00::]/8), or a name such as *.engines.default.svc; each may end with :PORT.`,
      { param: "REPLICA_HOSTS" },
    );
  }
  const pattern = host.toLowerCase().replaceAll(".", "\\.").replaceAll("*", "[a-z0-9-]+");
  return { addresses, name: new RegExp(`^${pattern}$`), port };
}

function problemOf(text: string, rules: readonly HostRule[], allowed: readonly string[]): string | undefined {
  const url = URL.parse(text);
  if (url === null) return "it is no URL";
  if (url.protocol !== "http:" && url.protocol !== "https:") return `its scheme is ${url.protocol.slice(0, 20)} and not http: or https:`;
  if (url.username !== "" || url.password !== "") return "it has credentials";
  if (url.pathname !== "/" || url.search !== "" || url.hash !== "") return "it has a path, a query or a fragment";
  const host = url.hostname.replace(/^\[(.*)\]$/, "$1");
  const family = isIP(host) === 6 ? "ipv6" : "ipv4";
  const port = url.port === "" ? (url.protocol === "https:" ? "443" : "80") : url.port;
  const isAllowed = rules.some(
    (rule) =>
      (rule.port === undefined || rule.port === port) &&
      (isIP(host) > 0 ? rule.addresses.check(host, family) : (rule.name?.test(host) ?? false)),
  );
  return isAllowed ? undefined : `${url.host.slice(0, 100)} is none of the hosts that replicas may have (${allowed.join(", ")})`;
}
