/** Ports on this machine. */
import { createServer } from "node:net";

/** Whether nobody listens on this port. 0, which means any port, is always free. */
export const isFree = (host: string, port: number): Promise<boolean> =>
  listen(host, port).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === "EADDRINUSE") return false;
      throw error;
    },
  );

/** The first of these that is free, else any free one. */
export async function freePort(host: string, wanted: readonly (number | undefined)[]): Promise<number> {
  for (const port of wanted) if (port !== undefined && (await isFree(host, port))) return port;
  return listen(host, 0);
}

async function listen(host: string, port: number): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen({ host, port, exclusive: true }, resolve);
  });
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === "object" && address !== null ? address.port : port;
}
