// How the stream of the server at argv[2] comes through express with compression: counts, as JSON.
import http from "node:http";
import compression from "compression";
import express from "express";
import { createProxyMiddleware } from "http-proxy-middleware";

const [, , target] = process.argv;
const body = JSON.stringify({ prompt: "Once", max_length: 40, ignore_eos: true, stream: true });

/** An app in front of the server; with `forgetful`, one that loses Cache-Control. */
function listening(forgetful) {
  const app = express();
  app.use(compression());
  const proxyRes = (answer) => {
    if (forgetful) delete answer.headers["cache-control"];
  };
  app.use(createProxyMiddleware({ target, changeOrigin: true, on: { proxyRes } }));
  return new Promise((resolve) => {
    const server = app.listen(0, "127.0.0.1", () => resolve(server));
  });
}

function asked(port) {
  const headers = { "Content-Type": "application/json", "Accept-Encoding": "gzip, deflate, br" };
  return new Promise((resolve, reject) => {
    const request = http.request({ port, path: "/generate", method: "POST", headers }, (answer) => {
      const chunks = [];
      answer.on("data", (chunk) => chunks.push(chunk));
      answer.on("end", () => resolve({ answer, chunks }));
    });
    request.on("error", reject);
    request.end(body);
  });
}

async function through(forgetful) {
  const server = await listening(forgetful);
  const { answer, chunks } = await asked(server.address().port);
  server.closeAllConnections();
  server.close();
  return {
    encoding: answer.headers["content-encoding"] ?? null,
    chunks: chunks.length,
    frames: Buffer.concat(chunks).toString().split("event: token").length - 1,
  };
}

console.log(JSON.stringify({ kept: await through(false), lost: await through(true) }));
