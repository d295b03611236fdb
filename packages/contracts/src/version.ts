/** The version of everything in this repository: `loraline --version`, the server, the chart. A test holds the others to it. */
export const version = "0.1.0";
