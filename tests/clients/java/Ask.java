// What Java's HttpClient, as it is by default, makes of the server at args[0]: a line for each answer.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.stream.Collectors;

public class Ask {
  private static final String BODY =
      "{\"prompt\": \"Once\", \"max_length\": 8, \"temperature\": 0, \"ignore_eos\": true, \"stream\": %s}";

  public static void main(String[] args) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (int i = 0; i < 2; i++) {
      var whole = client.send(post(args[0], "false"), BodyHandlers.ofString());
      System.out.println("whole " + whole.statusCode() + " " + whole.version() + " " + whole.body());
    }
    var stream = client.send(post(args[0], "true"), BodyHandlers.ofLines());
    String events =
        stream.body().filter(line -> line.startsWith("event: ")).collect(Collectors.joining(" "));
    System.out.println("stream " + stream.statusCode() + " " + stream.version() + " " + events);
    HttpRequest get = HttpRequest.newBuilder(URI.create(args[0] + "/v1/models")).build();
    var models = client.send(get, BodyHandlers.ofString());
    System.out.println("models " + models.statusCode() + " " + models.version() + " " + models.body());
  }

  private static HttpRequest post(String url, String stream) {
    return HttpRequest.newBuilder(URI.create(url + "/generate"))
        .header("Content-Type", "application/json")
        .POST(BodyPublishers.ofString(String.format(BODY, stream)))
        .build();
  }
}
